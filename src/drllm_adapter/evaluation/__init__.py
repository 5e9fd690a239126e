"""What routing gains and costs: paired comparison with the base, baselines at equal passes, sweeps, figures."""

from .baselines import BaselineTable, Effort, compare_with_baselines
from .compare import Report, Share, compare
from .contenders import Contender, paired_bootstrap
from .figures import plot_layers, plot_tradeoff
<<<<<<< HEAD
=======
from .scores import SCORES, score_both
from .static import StaticPath, best_static_at, score_static_paths, static_paths
>>>>>>> main
from .sweep import SweepPoint, sweep_controls, sweep_table

__all__ = [
    "SCORES",
    "BaselineTable",
    "Contender",
    "Effort",
    "Report",
    "Share",
    "SweepPoint",
    "compare",
    "compare_with_baselines",
    "paired_bootstrap",
    "plot_layers",
    "plot_tradeoff",
<<<<<<< HEAD
=======
    "score_both",
    "score_static_paths",
    "static_paths",
>>>>>>> main
    "sweep_controls",
    "sweep_table",
]
