"""`SharingScorer`: scores of many (question, path) pairs, each pass of a block run once for all paths that share it.

What a block computes of a question depends on the blocks that its tokens went through before, and on nothing else. So
the paths of a question form a tree, in which only the passes behind the first difference run. At each block, all
questions that wait for it run as one batch. A question's tokens make a row whose length depends on that question
alone; that is what keeps its scores the same, to the last bit, whichever questions run beside it (see docs/search.md).
"""

import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...adapter.calling import evaluating
from ...decisions import Decisions, execute_all, passes, to_path
from ...errors import DrLLMError
from ...search.bundle import Work
from ...tasks import Prompt
from ..fidelity import Fidelity, fidelity
from ..plain import PlainSession, Score, Scorer, check_references
from .blocks import Blocks, Prepared
from .packing import PackedRow, pack
from .states import Node, States

GIGABYTE = 2**30
_LENGTH_STEP = 4
"""Rows are padded to a multiple of this many tokens: fewer different lengths, and so larger batches."""
_LEAST_ROWS = 4
"""Answers are generated in batches of at least this many rows: some kernels sum differently over fewer."""
_TOLERANCE = {torch.float32: (0.01, 1e-4), torch.float64: (0.01, 1e-4)}
_TOLERANCE_OF_HALF = (0.5, 0.02)
"""How far log-likelihoods of packed and plain scoring may be apart by rounding: absolute, and of their size.

Measured on SmolLM2-135M: 5e-5 in float32, 0.5 at log-likelihoods of -50 in bfloat16, as much as between bfloat16 and
float32 themselves. Answers that see each other differ by several units.
"""

Pair = tuple[int, Decisions]
"""The place of a prompt among those of a session, and a path."""

T = TypeVar("T")
R = TypeVar("R")


class SharingScorer:
    """Scores prompts along paths as `Scorer` does, for searches: sharing and batching what they have in common.

    Prompt and continuations run as one packed row where no sliding window cuts them and no block goes by the order of
    the row. Whether that is right for the model (attention without 4-d masks, ...) is otherwise not looked up but
    tried: the longest row of the first bundle, and later any longer one, is scored both ways along the base model's
    path. From where they differ, `Scorer` does the work.

    Args:
        model: a causal language model with a router adapter, whose routers are not used.
        tokenizer: its tokenizer.
        memory: bytes of hidden states that are kept for the next paths; more makes the search faster, never different.
        batch_size: most questions a batch; halved when the device's memory is too small for it.
        notice: told, once each, what the user should know; a warning by default.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        memory: int = 2 * GIGABYTE,
        batch_size: int = 64,
        notice: Callable[[str], None] = warnings.warn,
    ) -> None:
        self.plain = Scorer(model, tokenizer)
        self.blocks = Blocks(model)
        self.num_blocks = len(self.blocks.layers)
        self.memory, self.batch_size, self.notice = memory, batch_size, notice
        self.shared = Work()
        # Lengths up to which rows were found to be scored right, and from which wrong: of trees, and of chains.
        self._limits: dict[bool, tuple[float, float]] = {False: (0, math.inf), True: (0, math.inf)}
        self._told: set[str] = set()

    @property
    def work(self) -> Work:
        """What was scored so far and what it cost."""
        return self.shared + self.plain.work

    def length(self, prompt: Prompt) -> int:
        """Tokens of the prompt's row: what prompts should be sorted by."""
        encoded = self.plain.encode(prompt)
        return len(pack(encoded.prompt, encoded.continuations).tokens)

    def in_batches(self, items: Sequence[T], run: Callable[[Sequence[T]], Sequence[R]], share: int = 1) -> list[R]:
        """The results of `run` for all items, in batches of `batch_size / share`.

        When the device's memory is too small for a batch, it is halved, and stays so.

        Raises:
            DrLLMError: the memory is too small for one item.
        """
        results: list[R] = []
        while len(results) < len(items):
            size = max(1, self.batch_size // share)
            try:
                results += run(items[len(results) : len(results) + size])
            except torch.OutOfMemoryError as error:
                if size == 1:
                    raise DrLLMError(
                        "one question must fit the device's memory, but not even a batch of one does; lower --memory, "
                        "use a smaller dtype or another device."
                    ) from error
                self._tell("memory", "the device ran out of memory; going on with smaller batches.")
                self.batch_size //= 2
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
        return results

    def begin(self, prompts: Sequence[Prompt]) -> "SharingSession | PlainSession":
        """The prompts, to be scored along paths by `session.score(places, paths)`.

        Raises:
            DrLLMError: a prompt with its answer is longer than the model's positions.
        """
        check_references(prompts)
        rows = []
        for prompt in prompts:
            encoded = self.plain.encode(prompt)
            rows.append(pack(encoded.prompt, encoded.continuations))
        fits = self._may_branch(rows) and all(self._fits(prompts, rows, is_chain) for is_chain in (False, True))
        return SharingSession(self, prompts, rows) if fits else PlainSession(self.plain, prompts)

    def _may_branch(self, rows: Sequence[PackedRow]) -> bool:
        """Whether answers may lie side by side behind their prompt: the masks of such rows say who sees whom.

        Where blocks do not go by masks alone this is known and not tried: a trial has a tolerance.
        """
        longest = max((max(row.positions) + 1 for row in rows if not row.is_chain), default=0)
        if longest and self.blocks.follows_the_row:
            self._tell(
                "packing",
                "prompts and answers cannot run as packed rows in this model, whose blocks go by the order of a row "
                "(recurrent states, ALiBi); their paths are scored by forward passes of their own.",
            )
            return False
        if longest > self.blocks.window:
            self._tell(
                "window",
                f"prompts and answers of {longest} tokens cannot run as packed rows in this model, whose attention "
                f"looks back {self.blocks.window} tokens; their paths are scored by forward passes of their own.",
            )
        return longest <= self.blocks.window

    def _fits(self, prompts: Sequence[Prompt], rows: Sequence[PackedRow], is_chain: bool) -> bool:
        """Whether the longest of those rows that are trees, or chains, is scored as it should be."""
        of_kind = [place for place, row in enumerate(rows) if row.is_chain == is_chain]
        if not of_kind:
            return True
        longest = max(of_kind, key=lambda place: len(rows[place].tokens))
        length = len(rows[longest].tokens)
        agreed, differed = self._limits[is_chain]
        if agreed < length < differed:
            agrees = self._agrees(prompts[longest], rows[longest])
            agreed, differed = self._limits[is_chain] = (length, differed) if agrees else (agreed, length)
        return length <= agreed

    def _agrees(self, prompt: Prompt, row: PackedRow) -> bool:
        """Whether packed and plain scoring give the same along the base model's path."""
        path, before, plain_before = execute_all(self.num_blocks), self.shared, self.plain.work
        expected = self.plain.log_likelihoods([prompt], [path])[0]
        try:
            found = SharingSession(self, [prompt], [row]).log_likelihoods([(0, path)])[0]
            absolute, relative = _TOLERANCE.get(self.blocks.dtype, _TOLERANCE_OF_HALF)
            apart = [(abs(ours - its), its) for ours, its in zip(found, expected, strict=True)]
            fits = all(math.isnan(its) or difference <= absolute + relative * abs(its) for difference, its in apart)
            reason = f"log-likelihoods differ by {max(apart)[0]:.3g}"
        except (DrLLMError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a model makes of masks and positions that it does not know
            fits, reason = False, f"{type(error).__name__} in {type(self.blocks.model).__name__}"
        finally:
            self.shared, self.plain.work = before, plain_before
        if not fits:
            self._tell(
                "packing",
                f"prompts and answers of {len(row.tokens)} tokens cannot run as packed rows in this model ({reason}); "
                f"their paths are scored by forward passes of their own.",
            )
        return fits

    def _tell(self, subject: str, text: str) -> None:
        if subject not in self._told:
            self._told.add(subject)
            self.notice(text)


@dataclass
class _Predicted:
    """Log-likelihoods of a prompt's continuations along a path.

    Attributes:
        greedy: the first greedy tokens of a free answer.
        fidelity: the path against the base, over a reference.
    """

    likelihoods: list[float]
    greedy: list[int] | None = None
    fidelity: Fidelity | None = None


class SharingSession:
    """Some prompts and the hidden states of the paths that they were scored along."""

    def __init__(self, scorer: SharingScorer, prompts: Sequence[Prompt], rows: Sequence[PackedRow]) -> None:
        self.scorer, self.prompts, self.rows = scorer, prompts, rows
        self._states = States(scorer.memory)
        self._scores: dict[Pair, Score] = {}
        self._batch_of: dict[int, tuple[Prepared, int]] = {}
        # What the base predicts along a reference, `[tokens, vocabulary]`, for what other paths are compared with.
        self._bases: dict[int, Tensor] = {}
        by_length = defaultdict(list)
        for place, row in enumerate(rows):
            by_length[-len(row.tokens) // _LENGTH_STEP * -_LENGTH_STEP, row.is_chain].append(place)
        for (length, is_chain), places in by_length.items():
            prepared = self._prepare([rows[place] for place in places], length, is_chain)
            self._batch_of.update((place, (prepared, index)) for index, place in enumerate(places))

    def score(self, places: Sequence[int], paths: Sequence[Decisions]) -> list[Score]:
        """One score for each pair: prompt `places[i]` along `paths[i]`. Equal pairs are scored once."""
        pairs = list(zip(places, paths, strict=True))
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._scores]
        predicted = self._predict(new)
        texts = self._texts(
            {pair: item.greedy for pair, item in zip(new, predicted, strict=True) if item.greedy is not None}
        )
        for pair, item in zip(new, predicted, strict=True):
            prompt = self.prompts[pair[0]]
            self._scores[pair] = self.scorer.plain.judge(
                prompt, item.likelihoods, pair[1], texts.get(pair, ""), item.fidelity
            )
        return [self._scores[pair] for pair in pairs]

    def log_likelihoods(self, pairs: Sequence[Pair]) -> list[list[float]]:
        """For each pair of a prompt and a path, the log-likelihood of each of the prompt's continuations."""
        return [predicted.likelihoods for predicted in self._predict(pairs)]

    @torch.inference_mode()
    def _predict(self, pairs: Sequence[Pair]) -> list["_Predicted"]:
        base = execute_all(self.scorer.num_blocks)
        compared = {place for place, _ in pairs if self.prompts[place].mode == "self"} - self._bases.keys()
        new = [(place, base) for place in sorted(compared)]
        if new and new != list(pairs):
            self._predict(new)
        with evaluating(self._blocks.model):
            finished = list(zip((place for place, _ in pairs), self._run_paths(pairs), strict=True))
            return self.scorer.in_batches(finished, self._read, share=4)

    def _texts(self, begun: dict[Pair, list[int]]) -> dict[Pair, str]:
        """Greedy answers to free questions, of which the first tokens are known; no longer than the verdict needs.

        Rows of a batch are equally long, and never fewer than a few: as in `run_pass`, so that what is generated does
        not depend on the neighbours.
        """
        plain = self.scorer.plain
        texts: dict[Pair, str] = {}
        batches: defaultdict[int, list[Pair]] = defaultdict(list)
        for pair, tokens in begun.items():
            prompt = self.prompts[pair[0]]
            if tokens and plain.ends(prompt, tokens, early=True):
                texts[pair] = plain.text(tokens)
            else:
                batches[len(plain.encode(prompt).prompt) + len(tokens)].append(pair)
        for waiting in batches.values():
            answers = self.scorer.in_batches(waiting, lambda part: self._generate(part, begun))
            texts.update(zip(waiting, answers, strict=True))
        return texts

    def _generate(self, pairs: Sequence[Pair], begun: Mapping[Pair, Sequence[int]]) -> list[str]:
        rows = [*pairs, *[pairs[0]] * (_LEAST_ROWS - len(pairs))]
        texts = self.scorer.plain.generate(
            [self.prompts[place] for place, _ in rows], [path for _, path in rows], [begun[pair] for pair in rows]
        )
        return texts[: len(pairs)]

    def _prepare(self, rows: Sequence[PackedRow], length: int, is_chain: bool) -> Prepared:
        # A tensor that all rows share must not look as if it had one entry for each of them, nor the other way round.
        count = max(2, len(rows))
        count += count == length
        padded = [rows[min(index, len(rows) - 1)] for index in range(count)]
        input_ids = torch.tensor([[*row.tokens, *[0] * (length - len(row.tokens))] for row in padded])
        if is_chain:
            # Padding on the right needs no mask: nothing before it attends to it.
            return self._blocks.prepare(input_ids, None, None)
        mask = torch.stack([row.visible(length) for row in padded])[:, None]
        positions = torch.tensor([[*row.positions, *[0] * (length - len(row.tokens))] for row in padded])
        return self._blocks.prepare(input_ids, mask, positions)

    @property
    def _blocks(self) -> Blocks:
        return self.scorer.blocks

    def _run_paths(self, pairs: Sequence[Pair]) -> list[Tensor]:
        """The hidden states behind the last block, for each pair `[reads, width]` where predictions are read.

        The passes that must run are done in the order of the blocks, for all pairs at once; what enters a pass has
        then always left the one before.
        """
        ends: list[Node] = []
        levels: defaultdict[tuple[int, bool], dict[Node, None]] = defaultdict(dict)
        children: Counter[Node] = Counter()
        held: dict[Node, Tensor] = {}
        for place, decisions in pairs:
            path = tuple(to_path(decisions))
            ends.append((place, path))
            length, hidden = self._states.longest(place, path)
            held[place, path[:length]] = self.entering(place) if hidden is None else hidden
            for end in range(length + 1, len(path) + 1):
                node = (place, path[:end])
                level = levels[path[end - 1], path[end - 1 : end] == path[end - 2 : end - 1]]
                if node not in level:
                    level[node] = None
                    children[place, path[: end - 1]] += 1
        for node in ends:
            children[node] += 1
        for block, again in sorted(levels):
            nodes = list(levels[block, again])
            entering = []
            for place, path in nodes:
                before = (place, path[:-1])
                entering.append(held[before])
                children[before] -= 1
                if not children[before]:
                    del held[before]
            for node, hidden in zip(nodes, self.run_pass(block, [place for place, _ in nodes], entering), strict=True):
                held[node] = hidden
                self._states.keep(node, hidden)
        self.count_passes(pairs, [place for nodes in levels.values() for place, _ in nodes])
        return [held[place, path][list(self.rows[place].reads)] for place, path in ends]

    def entering(self, place: int) -> Tensor:
        """`[tokens, width]`, what enters the first block for the row of a prompt."""
        prepared, index = self._batch_of[place]
        return prepared.hidden[index]

    def keep(self, place: int, decisions: Decisions, hidden: Tensor) -> None:
        """Keep the hidden states `[tokens, width]` that a prompt's row has at the end of a path."""
        self._states.keep((place, tuple(to_path(decisions))), hidden)

    def run_pass(self, block: int, places: Sequence[int], entering: Sequence[Tensor]) -> list[Tensor]:
        """One pass of a block over the hidden states of some questions, batched by the length of their rows."""
        batches: defaultdict[int, list[int]] = defaultdict(list)
        for item, place in enumerate(places):
            batches[id(self._batch_of[place][0])].append(item)
        leaving: dict[int, Tensor] = {}
        for items in batches.values():
            prepared = self._batch_of[places[items[0]]][0]

            def run(part: Sequence[int], prepared: Prepared = prepared) -> list[Tensor]:
                device = entering[part[0]].device
                hidden = torch.stack([entering[item].to(device) for item in part])
                output = self._blocks.run(block, hidden, prepared, [self._batch_of[places[item]][1] for item in part])
                # Copies, so that giving up one question's states frees memory while others of its batch are kept.
                return [state.clone() for state in output]

            leaving.update(zip(items, self.scorer.in_batches(items, run), strict=True))
        return [leaving[item] for item in range(len(places))]

    def _read(self, finished: Sequence[tuple[int, Tensor]]) -> list["_Predicted"]:
        """What is predicted from the states `[reads, width]` of some questions."""
        places, hidden = [place for place, _ in finished], [states for _, states in finished]
        rows = [self.rows[place] for place in places]
        device = hidden[0].device
        states = torch.cat([item.to(device) for item in hidden])
        # A few more than needed: some kernels sum differently over the odd rows at the end.
        padding = -len(states) % 8
        predicted = self._blocks.log_probabilities(torch.cat([states, states[:1].expand(padding, -1)]))
        starts = list(accumulate((len(row.reads) for row in rows), initial=0))
        wanted = [
            (start + read, token)
            for start, row in zip(starts, rows, strict=False)
            for continuation in row.targets
            for read, token in continuation
        ]
        index = torch.tensor(wanted, device=predicted.device)
        values = iter(predicted[index[:, 0], index[:, 1]].tolist())
        found = [
            _Predicted([math.fsum(next(values) for _ in continuation) for continuation in row.targets]) for row in rows
        ]
        for place, start, item in zip(places, starts, found, strict=False):
            along = predicted[start : start + len(self.rows[place].reads)]
            if self.prompts[place].mode == "free":
                item.greedy = self._greedy(place, along.argmax(dim=-1).tolist())
            elif self.prompts[place].mode == "self":
                # The base's own path is the first to be read, see `_predict`.
                item.fidelity = fidelity(self._bases.setdefault(place, along.clone()), along)
        return found

    def _greedy(self, place: int, best: Sequence[int]) -> list[int]:
        """The beginning of a greedy answer: the likeliest tokens, as long as they are the reference's, and one more."""
        tokens: list[int] = []
        (reference,) = self.rows[place].targets
        for likeliest, (_, token) in zip(best, reference, strict=True):
            tokens.append(likeliest)
            if likeliest != token or self.scorer.plain.ends(self.prompts[place], tokens, early=False):
                break
        return tokens

    def count_passes(self, pairs: Sequence[Pair], ran: Sequence[int]) -> None:
        """Add to the scorer's work: the paths `pairs` that were scored, and passes that `ran` for rows of prompts."""
        self.scorer.shared += Work(
            paths=len(pairs),
            passes=sum(passes(decisions) for _, decisions in pairs),
            passes_run=len(ran),
            tokens=sum(len(self.rows[place].tokens) for place in ran),
            slots=sum(self.entering(place).shape[0] for place in ran),
        )


def score_paths(
    scorer: SharingScorer,
    prompts: Sequence[Prompt],
    paths: Sequence[Sequence[Sequence[int]]],
    *,
    bundle: int = 32,
    show: Callable[[int], None] = lambda done: None,
) -> list[list[Score]]:
    """Score many given paths of many prompts, whatever they share run once: static baselines, relabelling, figures.

        scorer = SharingScorer(route_base(model), tokenizer)
        scores = score_paths(scorer, prompts, [candidates] * len(prompts))  # scores[i][j]: prompt i along candidates[j]

    Args:
        paths: `paths[i]` are those of `prompts[i]`; they may be as many as memory holds the scores of.
        bundle: prompts that run side by side.
        show: told how many prompts are done.

    Returns:
        `scores[i][j]` is that of `prompts[i]` along `paths[i][j]`.
    """
    scores: dict[int, list[Score]] = {}
    order = sorted(range(len(prompts)), key=lambda place: scorer.length(prompts[place]))
    for start in range(0, len(order), bundle):
        places = order[start : start + bundle]
        session = scorer.begin([prompts[place] for place in places])
        # Sorted, paths that begin alike follow one another; in rounds, so that few states are held at a time.
        queues = [sorted({tuple(path) for path in paths[place]}) for place in places]
        found: dict[Pair, Score] = {}
        for number in range(max(map(len, queues), default=0)):
            pairs = [(index, queue[number]) for index, queue in enumerate(queues) if number < len(queue)]
            found.update(zip(pairs, session.score(*zip(*pairs, strict=True)), strict=True))
        for index, place in enumerate(places):
            scores[place] = [found[index, tuple(path)] for path in paths[place]]
        show(start + len(places))
    return [scores[place] for place in range(len(prompts))]
