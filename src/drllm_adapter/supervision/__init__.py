"""What is learnt from: the set of paths tried, the rules that choose among them, what each decision does on average."""

from typing import TYPE_CHECKING, Any

from .labels import LABEL_RULES, LabelRule, Labels, choose_label, choose_labels

if TYPE_CHECKING:
    from .rows import Row, iterate_rows, read_rows, read_search_info

__all__ = [
    "LABEL_RULES",
    "LabelRule",
    "Labels",
    "Row",
    "choose_label",
    "choose_labels",
    "iterate_rows",
    "read_rows",
    "read_search_info",
]


def __getattr__(name: str) -> Any:
    # Loaded on first use: the help of the commands needs the rules, and not pyarrow.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import rows

    return getattr(rows, name)
