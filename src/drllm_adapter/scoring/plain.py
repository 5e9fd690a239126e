"""Scores of (prompt, path) pairs: how probable the right answer is along a path, and whether the model gives it; or
how close the path is to the base model over the base's own continuation.

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

from ..adapter.calling import evaluating
from ..adapter.layer import routed_layers
from ..decisions import Decisions, passes
from ..errors import DrLLMError
from ..search.bundle import Work
from ..tasks import Prompt, grade, settled
from .continuations import Predicted, as_base, forced, log_likelihoods, pad_left, predict_continuations
from .fidelity import Fidelity, fidelity

_DIGITS = 7
_SPECIAL_TOKENS = 16
KEPT = 4096
"""Prompts whose tokens are kept, the last ones used: a bundle's many times over, and never those of a whole set."""


@dataclass(frozen=True)
class Score:
    """What came of one prompt on one path.

    Attributes:
        probability: of the right answer. With several continuations, the softmax over their log-likelihoods; for a free
            answer and a reference, the geometric mean of its tokens' probabilities. NaN where the model's numbers are
            not finite.
        correct: the likeliest continuation is the right one, the generated text passes the grader, or the path agrees
            with the base about every token of the reference.
        decisions: those that ran.
        text: what was generated, for a free answer.
        agreement, kl: in the mode "self" how close the path is to the base, see `Fidelity`; None in others.
    """

    probability: float
    correct: bool
    decisions: Decisions
    text: str | None = None
    agreement: float | None = None
    kl: float | None = None


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
        self.padding: int = next(
            (token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0
        )
        ends = model.generation_config.eos_token_id
        self.end_tokens: list[int | None] = ends if isinstance(ends, list) else [ends]
        self.encode = lru_cache(KEPT)(self._encode)
        self._limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.work = Work()

    def begin(self, prompts: Sequence[Prompt]) -> "PlainSession":
        """The prompts, to be scored along paths by `session.score(places, paths)`: what a search asks for."""
        return PlainSession(self, prompts)

    def score(
        self,
        prompts: Sequence[Prompt],
        decisions: Sequence[Decisions] | None = None,
        bases: Sequence[Tensor | None] | None = None,
    ) -> list[Score]:
        """One score for each prompt, along `decisions[i]`; None lets the routers decide.

        Args:
            bases: what `base_predictions` of the prompts gives, where it is known.

        Raises:
            DrLLMError: a prompt with its answer is longer than the model's positions, or decisions do not fit.
        """
        scores: list[Score] = []
        for start in range(0, len(prompts), self.batch_size):
            rows = slice(start, start + self.batch_size)
            along = None if decisions is None else decisions[rows]
            base = self.base_predictions(prompts[rows]) if bases is None else bases[rows]
            with evaluating(self.model):
                scores += self._score_batch(prompts[rows], along, base)
        return scores

    def base_predictions(self, prompts: Sequence[Prompt]) -> list[Tensor | None]:
        """What the base predicts along the references of the mode "self": log-probabilities `[tokens, vocabulary]`.

        None for prompts of other modes. They are large: a megabyte or more for every five tokens.
        """
        check_references(prompts)
        found: list[Tensor | None] = [None] * len(prompts)
        compared = [place for place, prompt in enumerate(prompts) if prompt.mode == "self"]
        for start in range(0, len(compared), self.batch_size):
            places = compared[start : start + self.batch_size]
            with evaluating(self.model), as_base(self.model):
                predicted, _ = self._run([prompts[place] for place in places], None)
            for place, (reference,) in zip(places, predicted, strict=True):
                found[place] = reference.log_probabilities()
        return found

    def log_likelihoods(
        self, prompts: Sequence[Prompt], decisions: Sequence[Decisions] | None = None
    ) -> list[list[float]]:
        """The log-likelihoods of every prompt's continuations; all prompts run as one batch."""
        return _likelihoods(self._run(prompts, decisions)[0])

    def _score_batch(
        self, prompts: Sequence[Prompt], decisions: Sequence[Decisions] | None, bases: Sequence[Tensor | None]
    ) -> list[Score]:
        predicted, ran = self._run(prompts, decisions)
        likelihoods = _likelihoods(predicted)
        free = [row for row, prompt in enumerate(prompts) if prompt.mode == "free"]
        texts = dict(zip(free, self.generate([prompts[row] for row in free], [ran[row] for row in free]), strict=True))
        return [
            self.judge(
                prompt,
                likelihoods[row],
                ran[row],
                texts.get(row, ""),
                None if base is None else fidelity(base, predicted[row][0].log_probabilities()),
            )
            for row, (prompt, base) in enumerate(zip(prompts, bases, strict=True))
        ]

    def judge(
        self,
        prompt: Prompt,
        likelihoods: Sequence[float],
        decisions: Decisions,
        text: str = "",
        found: Fidelity | None = None,
    ) -> Score:
        """The score that the log-likelihoods of a prompt's continuations amount to.

        Args:
            text: what was generated, for a free answer.
            found: the path against the base, for a reference.
        """
        if prompt.mode == "self":
            assert found is not None
            probability = math.exp(likelihoods[0] / len(prompt.reference))
            agreement, kl = found
            return Score(
                _rounded(probability), agreement == 1, decisions, agreement=_rounded(agreement), kl=_rounded(kl)
            )
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
    ) -> tuple[list[list[Predicted]], list[Decisions]]:
        """What is predicted of every prompt's continuations, and the decisions that ran."""
        encoded = [self.encode(prompt) for prompt in prompts]
        predicted, ran = predict_continuations(
            self.model,
            [item.prompt for item in encoded],
            [item.continuations for item in encoded],
            padding=self.padding,
            decisions=decisions,
        )
        by_prompt: list[list[Predicted]] = [[] for _ in encoded]
        for item in predicted:
            by_prompt[item.prompt].append(item)
        made = sum(map(passes, ran))
        self.work += Work(paths=len(ran), passes=made, passes_run=made)
        return by_prompt, ran

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
        inputs = pad_left(rows, self.padding, self.model.device)
        del inputs["position_ids"]
        ends = _Ends(self, prompts, known, early=begun is not None)
        longest = max(prompt.max_new_tokens - len(tokens) for prompt, tokens in zip(prompts, known, strict=True))
        with forced(self.model, decisions), greedily(self.model, longest, self.padding) as config:
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
        if len(tokens) >= prompt.max_new_tokens or tokens[-1] in self.end_tokens:
            return True
        if not early:
            return False
        text = self.text(tokens)
        return prompt.answer_in(text) != text or settled(prompt.grader, text, str(prompt.answer))

    def check(self, prompt: Prompt) -> None:
        """Refuse a prompt that does not fit the model; only one that could be too long is tokenised.

        Raises:
            DrLLMError: see `encode`.
        """
        generated = prompt.max_new_tokens if prompt.mode in ("free", "self") else 0
        # A token has a byte at least, but for those that begin and end a text.
        answers = [generated, *(len(text.encode()) for text in prompt.continuations)]
        if self._limit is not None and len(prompt.text.encode()) + max(answers) + _SPECIAL_TOKENS > self._limit:
            self._encode(prompt)

    def _encode(self, prompt: Prompt) -> Encoded:
        """The token ids of a prompt.

        Raises:
            DrLLMError: nothing to score, or longer than the model's positions.
        """
        tokens = self.tokenizer(prompt.text, add_special_tokens=not prompt.templated)["input_ids"]
        # A reference is what the model generated: its text may be cut into other tokens.
        continuations = (
            [list(prompt.reference)]
            if prompt.reference
            else [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in prompt.continuations]
        )
        shown = prompt.text if len(prompt.text) <= 40 else prompt.text[:40] + "..."
        if not tokens or not all(continuations):
            raise DrLLMError(
                f"a prompt and its answers must have at least one token each, but those of {shown!r} do not; "
                f"leave that question out."
            )
        or_shorter = ", lower --max-new-tokens" if prompt.mode in ("free", "self") else ""
        generated = prompt.max_new_tokens if prompt.mode in ("free", "self") else 0
        longest = len(tokens) + max([generated, *(len(item) - 1 for item in continuations)])
        if self._limit is not None and longest > self._limit:
            raise DrLLMError(
                f"a prompt with its answer must fit the model's {self._limit} positions, but {shown!r} needs "
                f"{longest}; leave that question out{or_shorter} or use a model with more positions."
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
        with evaluating(model):
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
        self._bases = scorer.base_predictions(prompts)

    def score(self, places: Sequence[int], paths: Sequence[Decisions]) -> list[Score]:
        """One score for each pair: prompt `places[i]` along `paths[i]`."""
        bases = [self._bases[place] for place in places]
        return self.scorer.score([self.prompts[place] for place in places], paths, bases)


def check_references(prompts: Sequence[Prompt]) -> None:
    """Refuse prompts that are to be compared with a continuation that they do not have."""
    if any(prompt.mode == "self" and not prompt.reference for prompt in prompts):
        raise DrLLMError(
            "prompts of the mode self must have the base model's continuations to be scored, but some have none; call "
            "scoring.references.add_references."
        )


def _likelihoods(predicted: Sequence[Sequence[Predicted]]) -> list[list[float]]:
    """For each prompt, the log-likelihoods of its continuations."""
    values = iter(log_likelihoods([item for group in predicted for item in group]))
    return [[next(values) for _ in group] for group in predicted]


def _rounded(probability: float) -> float:
    return round(probability, _DIGITS)
