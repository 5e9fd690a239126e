"""Lossless decoding: the adapter's route drafts tokens, and one pass of all blocks accepts or replaces them.

One set of weights and one cache. The prompt is processed by all blocks while the routers decide; drafting skips blocks
over the same keys and values, and verification overwrites what it appended.
"""

from .decoding import speculate
from .draft import Speculation, last_speculation

__all__ = ["Speculation", "last_speculation", "speculate"]
