"""Questions that need a known number of steps: follow arrows between eight letters for `k` hops.

    d>g a>f h>d f>c g>a b>h c>e e>b from a 3 hops:

The arrows form one cycle through all eight letters, so up to seven hops never come back to the start. Every
word is one token of the demo model: an arrow, a letter, a number. The answer is one letter.
"""

import random
from collections.abc import Sequence
from typing import Any

LETTERS = "abcdefgh"
HOPS = tuple(range(1, len(LETTERS)))
SPECIAL_TOKENS = ("<unk>", "<pad>", "<eos>")


def vocabulary() -> list[str]:
    """Every word of the task, the three special tokens first; the position in the list is the token id."""
    pairs = [f"{a}>{b}" for a in LETTERS for b in LETTERS if a != b]
    return [*SPECIAL_TOKENS, *LETTERS, *map(str, HOPS), "from", "hops:", *pairs]


def generate(count: int, seed: int, hops: Sequence[int] = HOPS) -> list[dict[str, Any]]:
    """Draw `count` questions; the same arguments give the same questions.

    Args:
        count: how many questions.
        seed: questions of different seeds are different draws.
        hops: the numbers of hops to ask for, each 1 to 7; their counts differ by one at most.

    Returns:
        Dicts with `id` ("khop-<seed>-<n>"), `question` (the prompt text), `choices` (the eight letters),
        `answer` (the index of the right choice) and `level` (the number of hops).

    Raises:
        ValueError: `count` is negative or `hops` is empty or holds a number outside 1 to 7.
    """
    if count < 0:
        raise ValueError(f"The number of questions must be 0 or more, found {count}.")
    if not hops or any(k not in HOPS for k in hops):
        raise ValueError(f"Hops must be numbers from {HOPS[0]} to {HOPS[-1]}, found {list(hops)}.")
    rng = random.Random(f"khop-{seed}")
    questions: list[dict[str, Any]] = []
    levels: list[int] = []
    for n in range(count):
        if not levels:
            levels = rng.sample(list(hops), len(hops))
        level = levels.pop()
        cycle = rng.sample(LETTERS, len(LETTERS))
        arrows = [f"{a}>{b}" for a, b in zip(cycle, [*cycle[1:], cycle[0]], strict=True)]
        rng.shuffle(arrows)
        start = rng.randrange(len(cycle))
        end = cycle[(start + level) % len(cycle)]
        questions.append(
            {
                "id": f"khop-{seed}-{n}",
                "question": " ".join([*arrows, "from", cycle[start], str(level), "hops:"]),
                "choices": list(LETTERS),
                "answer": LETTERS.index(end),
                "level": level,
            }
        )
    return questions
