"""Scoring many paths of many questions: what paths share runs once, what differs runs side by side."""

from .scorer import SharingScorer, score_paths

__all__ = ["SharingScorer", "score_paths"]
