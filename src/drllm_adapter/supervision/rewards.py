"""What a path is worth to refinement, before its passes are paid for: one small class each.

Rewards in [0, 1] are the safe ones: with the logarithm of a probability, the few prompts that a path ruins outweigh all
others.
"""

import importlib.util
import math
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ..errors import DrLLMError
from ..registry import Registry
from ..tasks import Prompt


class Scored(Protocol):
    """What a scorer says of a prompt along a path, see `scoring.plain.Score`."""

    @property
    def probability(self) -> float: ...
    @property
    def correct(self) -> bool: ...
    @property
    def text(self) -> str | None: ...
    @property
    def agreement(self) -> float | None: ...


class Reward(Protocol):
    """A number for a prompt along a path, from what the scorers say of it.

    Attributes:
        summary: a few words for `--help`.
    """

    summary: ClassVar[str]

    def __call__(self, prompt: Prompt, score: Scored) -> float: ...


REWARDS: Registry[Reward] = Registry("reward", "drllm_adapter.rewards")


@REWARDS.register("probability")
class Probability:
    summary: ClassVar[str] = "of the right answer, or (geometric mean) of the reference's tokens"

    def __call__(self, prompt: Prompt, score: Scored) -> float:
        return 0.0 if math.isnan(score.probability) else score.probability


@REWARDS.register("agreement")
class Agreement:
    summary: ClassVar[str] = "share of the base model's own tokens that the path predicts (mode self)"

    def __call__(self, prompt: Prompt, score: Scored) -> float:
        if score.agreement is None:
            raise DrLLMError(
                f"the reward agreement compares with the base model's own text, but the mode {prompt.mode!r} has "
                f"none; use --mode self or the reward probability."
            )
        return score.agreement


@REWARDS.register("correct")
class Correct:
    summary: ClassVar[str] = "1 for a right answer, 0 for a wrong one (the paper's)"

    def __call__(self, prompt: Prompt, score: Scored) -> float:
        return float(score.correct)


class OwnFunction:
    """A user's function of the prompt's text and the generated text, from `file.py:function`.

    Raises:
        DrLLMError: there is no such file or function in it.
    """

    summary: ClassVar[str] = "a function of your own"

    def __init__(self, name: str) -> None:
        file, _, function = name.rpartition(":")
        if not Path(file).is_file():
            raise DrLLMError(f"a reward of your own must be in a file, but there is no {file}; correct the name.")
        spec = importlib.util.spec_from_file_location("drllm_reward", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.name = name
        self.function: Any = getattr(module, function, None)
        if not callable(self.function):
            raise DrLLMError(f"{file} must have a function {function}(prompt, text), but it has none; define it there.")

    def __call__(self, prompt: Prompt, score: Scored) -> float:
        if score.text is None:
            raise DrLLMError(
                f"the reward {self.name} needs a text, but prompts of the mode {prompt.mode!r} generate none; use "
                f"--mode free."
            )
        return float(self.function(prompt.text, score.text))


def find_reward(name: str) -> Reward:
    """The reward of that name, or a user's function, `file.py:function`.

    Raises:
        DrLLMError: there is no such reward, file or function.
    """
    if ".py:" in name:
        return OwnFunction(name)
    return REWARDS[name]()
