"""Hidden states at block boundaries, kept while they are useful."""

from collections import OrderedDict

from torch import Tensor

Node = tuple[int, tuple[int, ...]]
"""A question and the blocks that its tokens have gone through, in order."""


class States:
    """Hidden states of questions behind block passes, the least recently used given up first.

    What was given up is computed again when it is missed: the bound changes the time of a search and nothing else.

    Args:
        memory: bytes that may be kept.
    """

    def __init__(self, memory: int) -> None:
        self.memory, self.used = memory, 0
        self._states: OrderedDict[Node, Tensor] = OrderedDict()

    def longest(self, place: int, path: tuple[int, ...]) -> tuple[int, Tensor | None]:
        """How many of the first passes of `path` need not run for a question, and the hidden states behind them."""
        found = [
            (length, node) for length in range(1, len(path) + 1) if (node := (place, path[:length])) in self._states
        ]
        # What many paths begin with is used last, so that it outlives what only one path went through.
        for _, node in reversed(found):
            self._states.move_to_end(node)
        return (found[-1][0], self._states[found[-1][1]]) if found else (0, None)

    def keep(self, node: Node, hidden: Tensor) -> None:
        """Keep the hidden states of a question behind some passes."""
        before = self._states.pop(node, None)
        self._states[node] = hidden
        self.used += hidden.nbytes - (0 if before is None else before.nbytes)
        while self.used > self.memory:
            _, given_up = self._states.popitem(last=False)
            self.used -= given_up.nbytes
