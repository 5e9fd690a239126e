"""Benchmarks (`drllm bench`): ratios of things measured side by side in one run, each with its goal."""
