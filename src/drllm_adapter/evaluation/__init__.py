"""What routing gains and costs: paired comparison with the base, static paths as a baseline, figures."""

from .compare import Report, Share, compare
from .figures import plot_layers
from .scores import SCORES, score_both
from .static import StaticPath, best_static_at, score_static_paths, static_paths

__all__ = [
    "SCORES",
    "Report",
    "Share",
    "StaticPath",
    "best_static_at",
    "compare",
    "plot_layers",
    "score_both",
    "score_static_paths",
    "static_paths",
]
