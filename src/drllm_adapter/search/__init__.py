"""Searching better layer paths: a tree search that knows no model, label rules, and the set of what was found."""

from .bundle import PathScorer, Work, search_bundle
from .estimate import SearchEstimate, estimate_search
from .labels import LABEL_RULES, Labels, choose_label, choose_labels
from .random_paths import random_path
from .rows import Row, iterate_rows, read_rows, read_search_info
from .runner import run_search
from .summary import SearchSummary, Tally
from .tree import PathSearch, ScoredPath, SearchConfig

__all__ = [
    "LABEL_RULES",
    "Labels",
    "PathScorer",
    "PathSearch",
    "Row",
    "ScoredPath",
    "SearchConfig",
    "SearchEstimate",
    "SearchSummary",
    "Tally",
    "Work",
    "choose_label",
    "choose_labels",
    "estimate_search",
    "iterate_rows",
    "random_path",
    "read_rows",
    "read_search_info",
    "run_search",
    "search_bundle",
]
