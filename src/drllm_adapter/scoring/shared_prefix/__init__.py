"""Scoring many paths of many questions: what paths share runs once, what differs runs side by side."""

from .scorer import GIGABYTE, SharingScorer, score_paths

__all__ = ["GIGABYTE", "SharingScorer", "score_paths"]
