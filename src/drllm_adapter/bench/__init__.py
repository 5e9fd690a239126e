"""Benchmarks (`drllm bench`): two ways of doing the same, measured in turns in one run, and the cost of a search."""
