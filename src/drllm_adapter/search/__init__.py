"""Searching better layer paths: searches that know no model, and the job that runs them over many questions."""

from .bundle import PathScorer, Work, search_bundle
from .estimate import SearchEstimate, estimate_search
from .random_paths import random_path
from .runner import SUMMARY, run_search
from .summary import SearchSummary, Tally
from .tree import PathSearch, SearchConfig

__all__ = [
    "SUMMARY",
    "PathScorer",
    "PathSearch",
    "SearchConfig",
    "SearchEstimate",
    "SearchSummary",
    "Tally",
    "Work",
    "estimate_search",
    "random_path",
    "run_search",
    "search_bundle",
]
