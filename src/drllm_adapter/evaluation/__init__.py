"""What routing gains and costs: paired comparison with the base, baselines at equal passes, sweeps, figures."""

from .baselines import BaselineTable, Effort, ScorePaths, compare_with_baselines
from .bounds import HeldOut, check_limits, hold_to_limits
from .compare import Part, Report, Share, compare
from .contenders import Contender
from .figures import plot_layers, plot_tradeoff
from .intervals import paired_bootstrap
from .scores import SCORES, batches_of, score_both, scoring_all
from .sweep import SweepPoint, sweep_controls, sweep_table
from .verdict import verdict

__all__ = [
    "SCORES",
    "BaselineTable",
    "Contender",
    "Effort",
    "HeldOut",
    "Part",
    "Report",
    "ScorePaths",
    "Share",
    "SweepPoint",
    "batches_of",
    "check_limits",
    "compare",
    "compare_with_baselines",
    "hold_to_limits",
    "paired_bootstrap",
    "plot_layers",
    "plot_tradeoff",
    "score_both",
    "scoring_all",
    "sweep_controls",
    "sweep_table",
    "verdict",
]
