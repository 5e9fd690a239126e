"""A prompt and all continuations that are scored after it, as one row of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedRow:
    """The tokens of one question: the prompt once, then the continuations as a tree, each beginning just once.

    The last token of a continuation is only predicted, so it is not in the row.

    Attributes:
        tokens: the prompt's, then the continuations'.
        parents: for each token the index of the one that it follows, -1 for the first.
        positions: for each token how many precede it on its own way from the first: its position id.
        reads: indices of the tokens whose prediction is read.
        targets: for each continuation, for each of its tokens, which of `reads` predicts it and the token.
        prompt_length: how many of the tokens are the prompt's.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    positions: tuple[int, ...]
    reads: tuple[int, ...]
    targets: tuple[tuple[tuple[int, int], ...], ...]
    prompt_length: int

    @property
    def is_chain(self) -> bool:
        """Every token follows the one before it: the row is an ordinary sequence and needs no mask of its own."""
        return all(parent == place - 1 for place, parent in enumerate(self.parents))

    def visible(self, length: int) -> Tensor:
        """`[length, length]` bool: which tokens (columns) each one (rows) attends to, itself and those on its way.

        Padding up to `length` attends to itself alone and is seen by nothing.
        """
        visible = torch.eye(length, dtype=torch.bool)
        for place, parent in enumerate(self.parents):
            if parent >= 0:
                visible[place] |= visible[parent]
        return visible


def pack(prompt: Sequence[int], continuations: Sequence[Sequence[int]]) -> PackedRow:
    """Pack the token ids of a prompt and of its continuations, all with at least one token."""
    tokens = list(prompt)
    parents = list(range(-1, len(prompt) - 1))
    positions = list(range(len(prompt)))
    children: dict[tuple[int, int], int] = {}
    reads: dict[int, int] = {}
    targets = []
    for continuation in continuations:
        place, predicted = len(prompt) - 1, []
        for token in continuation[:-1]:
            predicted.append((reads.setdefault(place, len(reads)), token))
            if (place, token) not in children:
                children[place, token] = len(tokens)
                tokens.append(token)
                parents.append(place)
                positions.append(positions[place] + 1)
            place = children[place, token]
        predicted.append((reads.setdefault(place, len(reads)), continuation[-1]))
        targets.append(tuple(predicted))
    return PackedRow(tuple(tokens), tuple(parents), tuple(positions), tuple(reads), tuple(targets), len(prompt))
