"""`drllm probe`: can routers help this model on these questions? Measured before a long search is paid for.

Every question is scored along the same random paths and some of the single edits (one block skipped or repeated).
Routers help when some blocks are nearly free (redundancy), the best path differs between prompts (heterogeneity), and
the prompt's hidden states tell which (predictability); `measure` scores, `analyse` says how much of each there is.
"""

from .analysis import analyse
from .measurements import Measurements, measure
from .report import ProbeReport

__all__ = ["Measurements", "ProbeReport", "analyse", "measure"]
