"""On-policy refinement: routers try paths of their own choosing and learn from what came of them.

REINFORCE with a leave-one-out baseline (RLOO; Kool et al. 2019, Ahmadian et al., arXiv 2402.14740), as TRL's
`RLOOTrainer` has it for tokens; here the actions are the decisions of a prompt, one a router. The base model is frozen
and no gradient goes through it: what routers read along the sampled paths is kept, and the rest is small matrix work.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any, TextIO

import torch
from rich.console import Console
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from ..decisions import Decisions, passes
from ..errors import DrLLMError, Interrupted, check_range
from ..jobs import ALONE, JobProgress, Processes, Stop, job_progress, stop_on_signals, track
from ..scoring.shared_prefix import SharingScorer, SharingSession
from ..scoring.shared_prefix.walk import walk
from ..search.bundle import Work
from ..supervision.rewards import Reward
from ..tasks import Prompt
from .checkpoint import TrainingState, load_checkpoint, save_checkpoint
from .router_policy import RouterPolicy, Visit, router_logits
from .routers import Weights
from .trainer import CHECKPOINT_SECONDS, split_questions


@dataclass(frozen=True)
class RefineConfig:
    """How routers are refined; the names are those of TRL's `RLOOConfig`.

    Attributes:
        max_steps: gradient steps; 0 leaves the routers as they are.
        batch_size: prompts a step.
        num_generations: paths sampled for each of them, at least 2.
        learning_rate: peak of the cosine schedule of AdamW.
        warmup_ratio: share of the steps with a linear warm-up.
        entropy_coef: weight of the entropy bonus at the first step; falls to 0 linearly.
        price: of L block passes, in reward.
        validation_share: share of the prompts held out; where the last step is no better on them, the start is kept.
        eval_steps: steps between two looks at the held-out prompts.
        seed: of the split, of the order of the prompts and of the lots that are drawn.

    Raises:
        DrLLMError: a value is out of its range.
    """

    max_steps: int = 60
    batch_size: int = 32
    num_generations: int = 8
    learning_rate: float = 5e-4
    warmup_ratio: float = 0.1
    entropy_coef: float = 0.01
    price: float = 0.4
    validation_share: float = 0.2
    eval_steps: int = 15
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("max_steps", 0), ("batch_size", 1), ("num_generations", 2), ("eval_steps", 1)):
            check_range(name, getattr(self, name), least, math.inf)
        check_range("seed", self.seed, 0, 2**63 - 1)
        for name, lowest, highest in (
            ("learning_rate", 1e-8, 10.0),
            ("warmup_ratio", 0.0, 1.0),
            ("entropy_coef", 0.0, math.inf),
            ("price", 0.0, math.inf),
            ("validation_share", 0.001, 0.9),
        ):
            check_range(name, getattr(self, name), lowest, highest, whole=False)


@dataclass(frozen=True)
class Refined:
    """Refined routers.

    Attributes:
        weights: the stack, on the CPU; the start's where that was better on the held-out prompts.
        layers: the block of each router.
        history: one entry for each step: `step`, `learning_rate`, `reward` (before passes are paid), `mean_passes` and
            `entropy` (nats a decision) of the sampled paths; at every `eval_steps` also `validation_reward` and
            `validation_passes` of the likeliest ones.
        improved: whether the last step is better on the held-out prompts than the start.
        work: what was scored, and what of it ran.
        seconds: it took.
        validation: indices of the held-out prompts.
    """

    weights: Weights
    layers: tuple[int, ...]
    history: list[dict[str, Any]]
    improved: bool
    work: Work
    seconds: float
    validation: tuple[int, ...]

    @property
    def lines(self) -> tuple[str, str]:
        """What it came to, for people."""
        first, last = self.history[0], self.history[-1]
        found = (
            f"reward {first['validation_reward']:.3f} at {first['validation_passes']:.2f} passes before, "
            f"{last['validation_reward']:.3f} at {last['validation_passes']:.2f} after {last['step']} steps"
        )
        verdict = f"{len(self.validation)} held-out prompts: {found}; " + (
            "the refined routers are kept." if self.improved else "no better at this price, so the start is kept."
        )
        if last is first:
            verdict = (
                f"{len(self.validation)} held-out prompts: reward {first['validation_reward']:.3f} at "
                f"{first['validation_passes']:.2f} passes; no steps were asked for."
            )
        cost = (
            f"{self.work.paths:,} paths scored in {self.seconds:.0f} s; {100 * self.work.avoided:.0f} % of their block "
            f"passes were shared and did not run."
        )
        return verdict, cost


def refine_routers(
    start: Weights,
    layers: Sequence[int],
    scorer: SharingScorer,
    prompts: Sequence[Prompt],
    ids: Sequence[str],
    reward: Reward,
    config: RefineConfig | None = None,
    *,
    num_windows: int = 8,
    rms_norm: bool = False,
    processes: Processes = ALONE,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    console: Console | None = None,
    log: TextIO | None = None,
) -> Refined:
    """Refine a stack of routers on prompts.

    The same start, prompts, config and number of processes give the same weights, however often the run was
    interrupted. Several processes share the prompts of every step and add up their gradients: the same steps as one
    process makes, but for the last bits of sums.

    Args:
        start: weights of the routers, see `routers.Weights`; not changed.
        layers: the block of each router, ascending.
        scorer: of the frozen base model.
        ids: of the prompts, for the split and the lots.
        reward: of a path, before its passes are paid for, see `supervision.rewards`.
        checkpoint: file that keeps an unfinished run; what it holds is gone on with. It is the caller's to remove.

    Raises:
        DrLLMError: fewer than two prompts; a model whose blocks cannot be run one by one; a reward or weights that are
            not finite; a checkpoint that is damaged or of another run.
        Interrupted: on SIGINT or SIGTERM, with a last checkpoint.
    """
    config = config or RefineConfig()
    train, validation = split_questions(ids, config.validation_share, config.seed)
    run = _Run(start, tuple(layers), scorer, prompts, ids, reward, config, num_windows, rms_norm, processes)
    if checkpoint is not None:
        run.keep_in(checkpoint, checkpoint_seconds)
    began, work = time.perf_counter(), scorer.work
    with (
        stop_on_signals("step", loud=processes.is_main and checkpoint is not None) as stop,
        job_progress("refining", "steps", config.max_steps, console=console, log=log) as progress,
    ):
        run.train(train.tolist(), validation.tolist(), stop, progress)
    return Refined(
        weights=run.state.best_weights,
        layers=tuple(layers),
        history=run.state.history,
        improved=run.state.best_epoch > 0,
        work=Work(*map(round, run.sum(astuple(scorer.work - work)))),
        seconds=time.perf_counter() - began,
        validation=tuple(validation.tolist()),
    )


@dataclass(frozen=True)
class _Rollouts:
    """Paths that were walked, and what came of them.

    Attributes:
        rewards: float64 [paths], before passes are paid for.
        passes: float64 [paths].
        visits: see `RouterPolicy`.
    """

    rewards: Tensor
    passes: Tensor
    visits: list[Visit]


class _Run:
    def __init__(
        self,
        start: Weights,
        layers: tuple[int, ...],
        scorer: SharingScorer,
        prompts: Sequence[Prompt],
        ids: Sequence[str],
        reward: Reward,
        config: RefineConfig,
        num_windows: int,
        rms_norm: bool,
        processes: Processes,
    ) -> None:
        self.layers, self.scorer, self.prompts, self.ids = layers, scorer, prompts, ids
        self.reward, self.config, self.processes = reward, config, processes
        self.num_windows, self.rms_norm = num_windows, rms_norm
        device = scorer.blocks.model.device
        self.weights = {name: value.detach().clone().to(device).requires_grad_() for name, value in start.items()}
        optimizer = torch.optim.AdamW(list(self.weights.values()), lr=config.learning_rate, weight_decay=0.0)
        warmup = round(config.warmup_ratio * config.max_steps)
        schedule = get_cosine_schedule_with_warmup(optimizer, warmup, config.max_steps)
        self.state = TrainingState(self.weights, optimizer, schedule, torch.Generator().manual_seed(config.seed))
        self.state.order = self.state.generator.get_state()
        self.checkpoint: str | os.PathLike[str] | None = None

    def keep_in(self, checkpoint: str | os.PathLike[str], seconds: float) -> None:
        """Save where the run is to this file, every `seconds`."""
        digest = hashlib.sha256(
            json.dumps([asdict(self.config), self.layers, self.num_windows, self.rms_norm]).encode()
        )
        for name, prompt in zip(self.ids, self.prompts, strict=True):
            digest.update(f"{name}\0{prompt.text}\0{prompt.answer}\0".encode())
        for weight in self.weights.values():
            digest.update(weight.detach().cpu().numpy().tobytes())
        self.checkpoint, self.seconds, self.saved = checkpoint, seconds, time.monotonic()
        self.key = digest.hexdigest()
        load_checkpoint(checkpoint, self.state, self.key)

    def train(self, train: Sequence[int], validation: Sequence[int], stop: Stop, progress: JobProgress) -> None:
        state = self.state
        if not state.history:
            state.history.append({"step": 0})
            self._evaluate(validation)
        progress.update(state.step)
        while state.step < self.config.max_steps:
            self._step(train)
            state.step += 1
            if state.step % self.config.eval_steps == 0 or state.step == self.config.max_steps:
                self._evaluate(validation)
            last = state.history[-1]
            progress.update(state.step, facts={"reward": last["reward"]})
            progress.event("step", **last)
            track({"refining": last}, step=state.step)
            self._keep(stop)

    def _step(self, train: Sequence[int]) -> None:
        """One batch of prompts, the paths sampled for them, one step of the optimizer."""
        config, state = self.config, self.state
        batch = self._batch(train)
        mine = batch[self.processes.index :: self.processes.count]
        rollouts = self._walk(mine, config.num_generations, drawn=True)
        paid = rollouts.rewards - config.price * rollouts.passes / self.scorer.num_blocks
        groups = paid.view(-1, config.num_generations)
        others = (groups.sum(dim=1, keepdim=True) - groups) / (config.num_generations - 1)
        advantages = (groups - others).flatten().float()
        paths = len(batch) * config.num_generations
        bonus = config.entropy_coef * (1 - state.step / config.max_steps)
        entropy = 0.0
        loss = torch.zeros(())
        for visit in rollouts.visits:
            logits = router_logits(self.weights, visit.router, visit.means, visit.used)
            log_probabilities = logits.log_softmax(dim=-1)
            surprise = -(log_probabilities.exp() * log_probabilities).sum(dim=-1)
            # How often each group decided how, weighted by the advantage; and how many went by.
            weight = torch.zeros(logits.numel()).index_add_(
                0, visit.groups * logits.shape[-1] + visit.decisions, advantages[visit.walkers]
            )
            count = torch.bincount(visit.groups, minlength=len(logits)).to(logits)
            loss = loss - (log_probabilities * weight.view_as(logits).to(logits)).sum() / paths
            loss = loss - bonus * (surprise * count).sum() / paths
            entropy += float((surprise.detach() * count).sum()) / paths / len(self.layers)
        state.optimizer.zero_grad()
        if loss.requires_grad:
            loss.backward()
        self._sum_gradients()
        totals = self.sum([entropy, float(rollouts.rewards.sum()) / paths, float(rollouts.passes.sum()) / paths])
        if not all(map(math.isfinite, totals)):
            raise DrLLMError(
                f"rewards and routers must be finite, but a step came to {totals}; lower the learning rate, "
                f"{config.learning_rate:g} now, or correct the reward."
            )
        state.history.append(
            {
                "step": state.step + 1,
                "learning_rate": state.schedule.get_last_lr()[0],
                "reward": totals[1],
                "mean_passes": totals[2],
                "entropy": totals[0],
            }
        )
        state.optimizer.step()
        state.schedule.step()

    def _batch(self, train: Sequence[int]) -> list[int]:
        """The prompts of the step: epochs in an order of their own each, one behind the other."""
        size = min(self.config.batch_size, len(train))
        first = self.state.step * size
        places = range(first, first + size)
        orders = {
            epoch: torch.randperm(len(train), generator=self._generator(f"epoch {epoch}")).tolist()
            for epoch in {place // len(train) for place in places}
        }
        # A prompt that ends one epoch and begins the next would come twice.
        return list(dict.fromkeys(train[orders[place // len(train)][place % len(train)]] for place in places))

    def _walk(self, places: Sequence[int], count: int, *, drawn: bool) -> _Rollouts:
        """`count` paths of each prompt, one prompt behind the other: drawn by lot, or the likeliest."""
        if not places:
            nothing = torch.zeros(0, dtype=torch.float64)
            return _Rollouts(nothing, nothing, [])
        session = self.scorer.begin([self.prompts[place] for place in places])
        if not isinstance(session, SharingSession):
            raise DrLLMError(
                "refinement runs a model block by block, which gives other results than its own forward for this model "
                "and these prompts; train the routers with drllm train instead."
            )
        draws = None
        if drawn:
            step = self.state.step
            lots = [self._generator(f"{self.ids[place]} {step}") for place in places]
            draws = torch.cat([torch.rand(count, self.scorer.num_blocks, generator=lot) for lot in lots])
        weights = {name: value.detach() for name, value in self.weights.items()}
        policy = RouterPolicy(weights, self.layers, self.num_windows, self.rms_norm, draws)
        walkers = [index for index in range(len(places)) for _ in range(count)]
        paths: list[Decisions] = walk(session, walkers, policy)
        scores = session.score(walkers, paths)
        rewards = [
            self.reward(self.prompts[places[index]], score) for index, score in zip(walkers, scores, strict=True)
        ]
        made = [float(passes(path)) for path in paths]
        return _Rollouts(
            torch.tensor(rewards, dtype=torch.float64), torch.tensor(made, dtype=torch.float64), policy.visits
        )

    def _evaluate(self, validation: Sequence[int]) -> None:
        """The likeliest paths of the held-out prompts; keeps the weights at the start, and at the end if better."""
        state, config = self.state, self.config
        mine = validation[self.processes.index :: self.processes.count]
        rewards = made = 0.0
        for start in range(0, len(mine), config.batch_size):
            rollouts = self._walk(mine[start : start + config.batch_size], 1, drawn=False)
            rewards, made = rewards + float(rollouts.rewards.sum()), made + float(rollouts.passes.sum())
        rewards, made = (total / len(validation) for total in self.sum([rewards, made]))
        state.history[-1] |= {"validation_reward": rewards, "validation_passes": made}
        loss = config.price * made / self.scorer.num_blocks - rewards
        # Not the best of all looks: on few prompts that is the luckiest.
        if state.step in (0, config.max_steps) and loss < state.best_loss:
            state.best_loss, state.best_epoch = loss, state.step
            state.best_weights = {name: weight.detach().cpu().clone() for name, weight in self.weights.items()}

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """The sums over all processes."""
        if self.processes.count == 1:
            return list(numbers)
        from accelerate.utils import reduce

        device = self.scorer.blocks.model.device
        total: Any = reduce(torch.tensor(numbers, dtype=torch.float64, device=device), reduction="sum")
        return [float(number) for number in total]

    def _sum_gradients(self) -> None:
        if self.processes.count == 1:
            return
        from accelerate.utils import reduce

        for weight in self.weights.values():
            mine = torch.zeros_like(weight) if weight.grad is None else weight.grad
            total: Any = reduce(mine, reduction="sum")
            weight.grad = total

    def _generator(self, name: str) -> torch.Generator:
        """Lots that depend on the seed and the name alone."""
        digest = hashlib.sha256(f"{self.config.seed} {name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def _keep(self, stop: Stop) -> None:
        """Save the state when it is time to, or when the run shall stop."""
        due = self.checkpoint is not None and (stop.asked or time.monotonic() - self.saved >= self.seconds)
        if self.checkpoint is not None and due and self.processes.is_main:
            save_checkpoint(self.checkpoint, self.state, self.key)
            self.saved = time.monotonic()
        if self.sum([float(stop.asked)]) != [0.0]:
            kept = "." if self.checkpoint is None else "; go on with the same command and --resume."
            raise Interrupted(f"stopped after step {self.state.step} of {self.config.max_steps}{kept}")
