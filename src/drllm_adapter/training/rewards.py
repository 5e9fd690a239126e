"""What a path is worth to refinement, before its passes are paid for: one named function each.

A reward looks at the `Score` of a prompt along a path and gives a number. Bounded ones, in [0, 1], are safer: with the
logarithm of a probability the few prompts that a path ruins outweigh all others.
"""

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import DrLLMError
from ..scoring.plain import Score
from ..tasks import Prompt

Reward = Callable[[Prompt, Score], float]

REWARDS: dict[str, Reward] = {}
"""By name; `register_reward` adds to them."""


def register_reward(name: str) -> Callable[[Reward], Reward]:
    """Decorator: make a function a reward that `drllm refine --reward NAME` knows. Its docstring is its help."""

    def register(function: Reward) -> Reward:
        REWARDS[name] = function
        return function

    return register


@register_reward("probability")
def probability(prompt: Prompt, score: Score) -> float:
    """The probability of the right answer; of a reference, the geometric mean of its tokens' probabilities."""
    return 0.0 if math.isnan(score.probability) else score.probability


@register_reward("correct")
def correct(prompt: Prompt, score: Score) -> float:
    """1 for a right answer, 0 for a wrong one (the paper's)."""
    return float(score.correct)


def find_reward(name: str) -> Reward:
    """The reward of that name, or `file.py:function`, a function of the prompt's text and the generated text.

    Raises:
        DrLLMError: there is no such reward, file or function.
    """
    if name in REWARDS:
        return REWARDS[name]
    file, colon, function = name.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise DrLLMError(
            f"reward must be one of {', '.join(REWARDS)} or file.py:function, but {name!r} was given; correct it."
        )
    if not Path(file).is_file():
        raise DrLLMError(f"a reward of your own must be in a file, but there is no {file}; correct the name.")
    spec = importlib.util.spec_from_file_location("drllm_reward", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    own: Any = getattr(module, function, None)
    if not callable(own):
        raise DrLLMError(f"{file} must have a function {function}(prompt, text), but it has none; define it there.")

    def of_text(prompt: Prompt, score: Score) -> float:
        if score.text is None:
            raise DrLLMError(
                f"the reward {name} needs a text, but prompts of the mode {prompt.mode!r} generate none; use --mode "
                f"free."
            )
        return float(own(prompt.text, score.text))

    return of_text
