"""Learning the routers: features collected once, then all routers at once on them.

`collect_features` runs the frozen model along the label paths, `train_routers` needs no model any more,
`plot_curves` draws what happened.
"""

from .collect import collect_features
from .config import TrainingConfig
from .curves import plot_curves, plot_refinement
from .features import FeatureStore
from .loss import effective_number_weights, focal_loss
from .objectives import EffectRegression
from .refine import RefineConfig, Refined, refine_routers
from .routers import load_weights_into, read_weights
from .trainer import TrainingResult, check_labels, split_questions, train_routers

__all__ = [
    "EffectRegression",
    "FeatureStore",
    "RefineConfig",
    "Refined",
    "TrainingConfig",
    "TrainingResult",
    "check_labels",
    "collect_features",
    "effective_number_weights",
    "focal_loss",
    "load_weights_into",
    "plot_curves",
    "plot_refinement",
    "read_weights",
    "refine_routers",
    "split_questions",
    "train_routers",
]
