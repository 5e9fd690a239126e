"""What is learnt from: the set of paths tried, the rules that choose among them, what each decision does on average."""

from .labels import LABEL_RULES, LabelRule, Labels, choose_label, choose_labels
from .rows import Row, Rows, iterate_rows, read_rows, read_search_info

__all__ = [
    "LABEL_RULES",
    "LabelRule",
    "Labels",
    "Row",
    "Rows",
    "choose_label",
    "choose_labels",
    "iterate_rows",
    "read_rows",
    "read_search_info",
]
