"""`drllm probe`: can routers help this model on these prompts? Measured before anything is searched or trained.

The base model's own continuation of every prompt is the reference. Routers help when some blocks are nearly free
(redundancy), prompts differ in what can be left out (heterogeneity), and their hidden states tell (predictability):
`measure` leaves blocks out, `analyse` says how much of each there is and what choosing by the prompt would keep.
"""

from .analysis import analyse
from .measurements import Measurements, measure
from .report import ProbeReport

__all__ = ["Measurements", "ProbeReport", "analyse", "measure"]
