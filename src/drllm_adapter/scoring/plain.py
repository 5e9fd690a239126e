"""Scores of (prompt, path) pairs: how probable the right answer is along a path, and whether the model gives it.

Decisions read the prompt alone, see continuations.py. Rows of a batch follow paths of their own.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from ..adapter.layer import routed_layers
from ..decisions import Decisions, passes
from ..errors import DrLLMError
from ..search.bundle import Work
from ..tasks import Prompt, grade, settled
from .continuations import forced, pad_left, predict_continuations

_DIGITS = 7
KEPT = 4096
"""Prompts whose tokens are kept, the last ones used: a bundle's many times over, and never those of a whole set."""


@dataclass(frozen=True)
class Score:
    """What came of one prompt on one path.

    Attributes:
        probability: of the right answer. With several continuations, the softmax over their log-likelihoods; for a free
            answer, the geometric mean of the reference answer's token probabilities. NaN where the model's numbers are
            not finite.
        correct: the likeliest continuation is the right one, or the generated text passes the grader.
        decisions: those that ran.
        text: what was generated, for a free answer.
    """

    probability: float
    correct: bool
    decisions: Decisions
    text: str | None = None


@dataclass(frozen=True)
class Encoded:
    """Token ids of a prompt and of the continuations that are scored after it."""

    prompt: list[int]
    continuations: list[list[int]]


class Scorer:
    """Scores prompts along given paths, or along those that the routers choose.

    Prompts run in batches of `batch_size` in the order given. A row's score does not depend on its neighbours but for
    the last bits of floating-point sums; callers that need the same bits again keep the batches the same.

    Args:
        model: a causal language model with a router adapter.
        tokenizer: its tokenizer.
        batch_size: prompts a forward pass.
    """

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int = 16) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.num_blocks: int = routed_layers(model)[0].route.num_blocks
        self._padding = next(
            (token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0
        )
        ends = model.generation_config.eos_token_id
        self._end_tokens: list[int | None] = ends if isinstance(ends, list) else [ends]
        self.encode = lru_cache(KEPT)(self._encode)
        self.work = Work()

    def begin(self, prompts: Sequence[Prompt]) -> "PlainSession":
        """The prompts, to be scored along paths by `session.score(places, paths)`: what a search asks for."""
        return PlainSession(self, prompts)

    def score(self, prompts: Sequence[Prompt], decisions: Sequence[Decisions] | None = None) -> list[Score]:
        """One score for each prompt, along `decisions[i]`; None lets the routers decide.

        Raises:
            DrLLMError: a prompt with its answer is longer than the model's positions, or decisions do not fit.
        """
        scores: list[Score] = []
        training = self.model.training
        self.model.eval()
        try:
            for start in range(0, len(prompts), self.batch_size):
                rows = slice(start, start + self.batch_size)
                scores += self._score_batch(prompts[rows], None if decisions is None else decisions[rows])
        finally:
            self.model.train(training)
        return scores

    def log_likelihoods(
        self, prompts: Sequence[Prompt], decisions: Sequence[Decisions] | None = None
    ) -> list[list[float]]:
        """The log-likelihoods of every prompt's continuations; all prompts run as one batch."""
        return self._run(prompts, decisions)[0]

    def _score_batch(self, prompts: Sequence[Prompt], decisions: Sequence[Decisions] | None) -> list[Score]:
        likelihoods, ran = self._run(prompts, decisions)
        free = [row for row, prompt in enumerate(prompts) if prompt.mode == "free"]
        texts = dict(zip(free, self.generate([prompts[row] for row in free], [ran[row] for row in free]), strict=True))
        return [
            self.judge(prompt, likelihoods[row], ran[row], texts.get(row, "")) for row, prompt in enumerate(prompts)
        ]

    def judge(self, prompt: Prompt, likelihoods: Sequence[float], decisions: Decisions, text: str = "") -> Score:
        """The score that the log-likelihoods of a prompt's continuations and its generated text amount to."""
        if prompt.mode == "free":
            probability = math.exp(likelihoods[0] / len(self.encode(prompt).continuations[0]))
            correct = not math.isnan(probability) and grade(prompt.grader, prompt.answer_in(text), str(prompt.answer))
            return Score(_rounded(probability), correct, decisions, text)
        probabilities = torch.tensor(likelihoods, dtype=torch.float64).softmax(dim=0)
        probability = float(probabilities[int(prompt.answer)])
        # A tie goes to the first choice, as argmax does everywhere. NaN answers nothing.
        correct = int(probabilities.argmax()) == prompt.answer and not math.isnan(probability)
        return Score(_rounded(probability), correct, decisions)

    def _run(
        self, prompts: Sequence[Prompt], decisions: Sequence[Decisions] | None
    ) -> tuple[list[list[float]], list[Decisions]]:
        """The log-likelihoods of every prompt's continuations, and the decisions that ran."""
        encoded = [self.encode(prompt) for prompt in prompts]
        predicted, ran = predict_continuations(
            self.model,
            [item.prompt for item in encoded],
            [item.continuations for item in encoded],
            padding=self._padding,
            decisions=decisions,
        )
        likelihoods: list[list[float]] = [[] for _ in encoded]
        for item in predicted:
            likelihoods[item.prompt].append(item.log_likelihood())
        made = sum(map(passes, ran))
        self.work += Work(paths=len(ran), passes=made, passes_run=made)
        return likelihoods, ran

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Prompt],
        decisions: Sequence[Decisions],
        begun: Sequence[Sequence[int]] | None = None,
    ) -> list[str]:
        """Greedy answers to free questions, each along its path.

        Args:
            begun: the first tokens of each answer where they are known. When given, an answer also ends as soon as its
                verdict is certain.
        """
        if not prompts:
            return []
        known = [[]] * len(prompts) if begun is None else begun
        rows = [[*self.encode(prompt).prompt, *tokens] for prompt, tokens in zip(prompts, known, strict=True)]
        inputs = pad_left(rows, self._padding, self.model.device)
        del inputs["position_ids"]
        ends = _Ends(self, prompts, known, early=begun is not None)
        longest = max(prompt.max_new_tokens - len(tokens) for prompt, tokens in zip(prompts, known, strict=True))
        with forced(self.model, decisions), greedily(self.model, longest, self._padding) as config:
            output = self.model.generate(
                **inputs,
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([ends]),
            )
        generated = output[:, inputs["input_ids"].shape[1] :].tolist()
        return [self.text([*known[row], *tokens[: ends.lengths[row]]]) for row, tokens in enumerate(generated)]

    def text(self, tokens: Sequence[int]) -> str:
        """What generated tokens say."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def ends(self, prompt: Prompt, tokens: Sequence[int], *, early: bool) -> bool:
        """Whether an answer that begins with `tokens` ends there; `early`, also where its verdict is certain."""
        if len(tokens) >= prompt.max_new_tokens or tokens[-1] in self._end_tokens:
            return True
        if not early:
            return False
        text = self.text(tokens)
        return prompt.answer_in(text) != text or settled(prompt.grader, text, str(prompt.answer))

    def _encode(self, prompt: Prompt) -> Encoded:
        """The token ids of a prompt.

        Raises:
            DrLLMError: nothing to score, or longer than the model's positions.
        """
        tokens = self.tokenizer(prompt.text, add_special_tokens=not prompt.templated)["input_ids"]
        continuations = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in prompt.continuations]
        shown = prompt.text if len(prompt.text) <= 40 else prompt.text[:40] + "..."
        if not tokens or not all(continuations):
            raise DrLLMError(
                f"a prompt and its answers must have at least one token each, but those of {shown!r} do not; "
                f"leave that question out."
            )
        or_shorter = ", lower --max-new-tokens" if prompt.mode == "free" else ""
        longest = len(tokens) + max(
            prompt.max_new_tokens if prompt.mode == "free" else 0, *(len(item) - 1 for item in continuations)
        )
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and longest > limit:
            raise DrLLMError(
                f"a prompt with its answer must fit the model's {limit} positions, but {shown!r} needs {longest}; "
                f"leave that question out{or_shorter} or use a model with more positions."
            )
        return Encoded(tokens, continuations)


@contextmanager
def greedily(model: Any, max_new_tokens: int, padding: int) -> Iterator[GenerationConfig]:
    """The configuration with which `generate` takes the likeliest token each time, whatever the base's own asks for.

    Beams, sampling, penalties, forced and forbidden tokens that come with a checkpoint say how its users should call
    it; a score is what the model itself predicts. `generate` fills in from the model's configuration what a call leaves
    out, so inside the `with` block this one stands in its place.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = {owner: owner.generation_config for owner in (model, base) if "generation_config" in vars(owner)}
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        pad_token_id=padding,
        bos_token_id=base.generation_config.bos_token_id,
        eos_token_id=base.generation_config.eos_token_id,
    )
    for owner in before:
        owner.generation_config = config
    try:
        yield config
    finally:
        for owner, own in before.items():
            owner.generation_config = own


class _Ends(StoppingCriteria):  # type: ignore[misc, unused-ignore]
    """Notes how long each row's answer is, and tells `generate` which have ended; see `Scorer.ends`."""

    def __init__(
        self, scorer: Scorer, prompts: Sequence[Prompt], known: Sequence[Sequence[int]], *, early: bool
    ) -> None:
        self.scorer, self.prompts, self.known, self.early = scorer, prompts, known, early
        self.lengths: dict[int, int] = {}
        self.generated = 0

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.generated += 1
        for row, tokens in enumerate(input_ids[:, -self.generated :].tolist()):
            answer = [*self.known[row], *tokens]
            if row not in self.lengths and self.scorer.ends(self.prompts[row], answer, early=self.early):
                self.lengths[row] = self.generated
        return torch.tensor([row in self.lengths for row in range(len(input_ids))], device=input_ids.device)


class PlainSession:
    """Scores some prompts along one path after another, each from the first block on."""

    def __init__(self, scorer: Scorer, prompts: Sequence[Prompt]) -> None:
        self.scorer, self.prompts = scorer, prompts

    def score(self, places: Sequence[int], paths: Sequence[Decisions]) -> list[Score]:
        """One score for each pair: prompt `places[i]` along `paths[i]`."""
        return self.scorer.score([self.prompts[place] for place in places], paths)


def _rounded(probability: float) -> float:
    return round(probability, _DIGITS)
