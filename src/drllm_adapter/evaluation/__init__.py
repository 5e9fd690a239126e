"""What routing gains and costs: paired comparison with the base, baselines at equal passes, sweeps, figures."""

from .baselines import BaselineTable, Effort, ScorePaths, compare_with_baselines
from .compare import Part, Report, Share, compare
from .contenders import Contender, paired_bootstrap
from .figures import plot_layers, plot_tradeoff
from .scores import SCORES, batches_of, score_both
from .sweep import SweepPoint, sweep_controls, sweep_table
from .verdict import verdict

__all__ = [
    "SCORES",
    "BaselineTable",
    "Contender",
    "Effort",
    "Part",
    "Report",
    "ScorePaths",
    "Share",
    "SweepPoint",
    "batches_of",
    "compare",
    "compare_with_baselines",
    "paired_bootstrap",
    "plot_layers",
    "plot_tradeoff",
    "score_both",
    "sweep_controls",
    "sweep_table",
    "verdict",
]
