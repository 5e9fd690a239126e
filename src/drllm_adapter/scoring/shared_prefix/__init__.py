"""Scoring many paths of many questions: what paths share runs once, what differs runs side by side."""

from .scorer import GIGABYTE, SharingScorer, SharingSession, score_paths

__all__ = ["GIGABYTE", "SharingScorer", "SharingSession", "score_paths"]
