"""lm-evaluation-harness with routers: its `hf` model routes on each request's context, never on the continuation.

The harness scores a continuation by one forward call over context and continuation, padded on the right and without a
mask: routers would read the answer and the padding. Here each context runs first and alone, and its continuations
follow in its cache. The package asks for `install` as soon as the harness' model is imported, so that
`import drllm_adapter` is all that `lm_eval.simple_evaluate(model="hf", ...)` needs.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import wrapt
from rich.table import Table

from ..adapter.layer import RoutedLayer
from ..adapter.steering import last_decisions
from ..errors import DrLLMError, refusing
from ..scoring.continuations import are_greedy, log_likelihoods, predict_continuations
from .intervals import paired_interval

Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""What the harness asks: both texts (None for a rolling window), token ids of the context and of the continuation."""

Answer = tuple[float, bool]
"""Log-likelihood of the continuation, and whether greedy decoding would give it."""


def install(huggingface: Any) -> None:
    """Patch `HFLM` of `lm_eval.models.huggingface`: routed models read the context first, others score as before."""
    wrapt.wrap_function_wrapper(huggingface, "HFLM._loglikelihood_tokens", _loglikelihood_tokens)


def _loglikelihood_tokens(
    unrouted: Callable[..., list[Answer]], lm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Answer]:
    """In place of `HFLM._loglikelihood_tokens(requests, disable_tqdm=False, override_bs=None)`."""
    if not any(isinstance(module, RoutedLayer) for module in lm.model.modules()):
        return unrouted(*args, **kwargs)

    def arguments(
        requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> tuple[Sequence[Request], bool, int | None]:
        return requests, disable_tqdm, override_bs

    requests, quiet, batch_size = arguments(*args, **kwargs)
    if batch_size is None:
        batch_size = lm.batch_size
    if batch_size == "auto":
        longest = max(range(len(requests)), key=lambda place: len(requests[place][1]) + len(requests[place][2]))
        batch_size = lm._detect_batch_size(requests, longest)
    mixed = lm.mixed_precision_dtype
    with torch.autocast(lm.device.type, dtype=mixed) if mixed is not None else nullcontext():
        answers = score_requests(lm.model, requests, lm.max_length, int(batch_size), quiet=quiet or lm.rank != 0)
    for (texts, _, _), answer in zip(requests, answers, strict=True):
        if texts is not None:
            lm.cache_hook.add_partial("loglikelihood", texts, answer)
    return answers


def score_requests(
    model: Any, requests: Sequence[Request], max_length: int, batch_size: int, *, quiet: bool = True
) -> list[Answer]:
    """The answers in the order of the requests; those with the same context share one run of it.

    Args:
        model: with a router adapter.
        max_length: tokens the model reads at most; longer contexts lose their beginning, as in the harness.
        batch_size: requests side by side, or those of one context when they are more.
        quiet: no progress bar.
    """
    from tqdm import tqdm  # the harness' own choice, so that the bar looks like its others

    by_context: dict[tuple[int, ...], list[int]] = {}
    for place, (_, context, continuation) in enumerate(requests):
        # The last token is only predicted, never read.
        kept = (context + continuation)[-(max_length + 1) : -len(continuation)]
        by_context.setdefault(tuple(kept), []).append(place)
    answers: dict[int, Answer] = {}
    with tqdm(total=len(requests), disable=quiet, desc="Running routed loglikelihood requests") as bar:
        for contexts in _batches(by_context, batch_size):
            places = [by_context[context] for context in contexts]
            continuations = [[requests[place][2] for place in group] for group in places]
            predicted, _ = predict_continuations(model, contexts, continuations, padding=0)
            scored = list(zip(log_likelihoods(predicted), are_greedy(predicted), strict=True))
            answers.update(zip((place for group in places for place in group), scored, strict=True))
            bar.update(len(scored))
    return [answers[place] for place in range(len(requests))]


def _batches(by_context: dict[tuple[int, ...], list[int]], batch_size: int) -> Iterator[list[tuple[int, ...]]]:
    """Contexts of similar length, longest first, with at most `batch_size` requests together."""
    batch: list[tuple[int, ...]] = []
    for context in sorted(by_context, key=lambda tokens: (-len(tokens), tokens)):
        if batch and sum(len(by_context[other]) for other in (*batch, context)) > batch_size:
            yield batch
            batch = []
        batch.append(context)
    yield batch


# The harness' tasks for an adapter, base against routed.


@dataclass(frozen=True)
class Measured:
    """One metric of one task.

    Attributes:
        base, routed: its values.
        count: documents.
        interval: 95 % of the paired difference, for metrics that are right or wrong for each document.
    """

    task: str
    metric: str
    base: float
    routed: float
    count: int
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class HarnessReport:
    """What the harness measured on the same documents.

    Attributes:
        measured: every metric of every task.
        num_blocks: passes of the base.
        mean_passes: of the routed model, over all prompts that it processed.
        harness: version of lm-evaluation-harness.
    """

    measured: list[Measured]
    num_blocks: int
    mean_passes: float
    harness: str

    def to_json(self) -> dict[str, Any]:
        return {
            "harness": self.harness,
            "num_blocks": self.num_blocks,
            "mean_passes": self.mean_passes,
            "results": [
                {**vars(item), "difference": item.routed - item.base, "interval": item.interval}
                for item in self.measured
            ],
        }

    def table(self) -> Table:
        """The report for people."""
        title = f"lm-evaluation-harness {self.harness}: {self.mean_passes:.2f} passes of {self.num_blocks} on average"
        table = Table("task", "metric", "n", "base", "routed", "difference", title=title, title_justify="left")
        for item in self.measured:
            interval = "" if item.interval is None else f" [{item.interval[0]:+.4f}, {item.interval[1]:+.4f}]"
            table.add_row(
                item.task, item.metric, str(item.count), f"{item.base:.4f}", f"{item.routed:.4f}",
                f"{item.routed - item.base:+.4f}{interval}",
            )  # fmt: skip
        return table


def evaluate_with_harness(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    include_path: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> HarnessReport:
    """Run tasks of lm-evaluation-harness twice, with the adapter disabled and enabled.

    Args:
        model: a `PeftModel` with a router adapter.
        tasks: names that the harness knows, or of YAML files in `include_path`.
        include_path: folder of further task files.
        limit: documents a task at most.

    Raises:
        DrLLMError: the harness is not installed, or a task is unknown or its data cannot be loaded.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise DrLLMError(
            "tasks of lm-evaluation-harness need the extra lm-eval, but it is not installed; run "
            "pip install 'drllm-adapter[lm-eval]'."
        ) from error
    if include_path is not None and not Path(include_path).is_dir():
        raise DrLLMError(
            f"--include-path must be a folder of task files, but {include_path} is none; correct the name."
        )
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    if unknown := [task for task in tasks if not manager.match_tasks([task])]:
        raise DrLLMError(
            f"tasks must be known to lm-evaluation-harness or lie in --include-path, but {unknown[0]!r} is neither; "
            f"lm-eval ls tasks lists those that it knows."
        )

    def run() -> dict[str, Any]:
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        # Datasets and the harness raise many kinds.
        with refusing(
            f"the tasks {', '.join(tasks)} must run in lm-evaluation-harness, but it failed",
            "check their data, or the network",
        ):
            found = lm_eval.simple_evaluate(
                lm, tasks=list(tasks), task_manager=manager, limit=limit, bootstrap_iters=0, log_samples=True,
                random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed,
            )  # fmt: skip
        assert found is not None  # only on other ranks of a distributed run
        return found

    with model.disable_adapter():
        base = run()
    with counted_passes(model) as passes:
        routed = run()
    return HarnessReport(
        measured=list(_measured(base, routed)),
        num_blocks=last_decisions(model).shape[1],
        mean_passes=sum(passes) / len(passes),
        harness=lm_eval.__version__,
    )


@contextmanager
def counted_passes(model: Any) -> Iterator[list[int]]:
    """Gives a list that receives the block passes of every prompt that the model processes inside the block."""
    passes: list[int] = []
    route = next(module for module in model.modules() if isinstance(module, RoutedLayer)).route
    prompt = route.decisions

    def note(_module: torch.nn.Module, _args: Any, _output: Any) -> None:
        nonlocal prompt
        if route.decisions is not prompt:  # and not the continuation of one
            prompt = route.decisions
            passes.extend(route.last().sum(dim=1).tolist())

    handle = model.get_base_model().register_forward_hook(note)
    try:
        yield passes
    finally:
        handle.remove()


def _measured(base: dict[str, Any], routed: dict[str, Any]) -> Iterator[Measured]:
    for task, metrics in base["results"].items():
        samples = (base["samples"].get(task, []), routed["samples"].get(task, []))
        for name, value in metrics.items():
            metric = name.partition(",")[0]
            if not isinstance(value, float) or metric.endswith("_stderr"):
                continue
            pairs = [(one.get(metric), other.get(metric)) for one, other in zip(*samples, strict=True)]
            binary = bool(pairs) and all(one in (0, 1) and other in (0, 1) for one, other in pairs)
            gained, lost = (sum(pair == outcome for pair in pairs) for outcome in ((0, 1), (1, 0)))
            yield Measured(
                task=task,
                metric=metric,
                base=value,
                routed=float(routed["results"][task][name]),
                count=len(pairs) or int(base["n-samples"].get(task, {}).get("effective", 0)),
                interval=paired_interval(gained, lost, len(pairs)) if binary else None,
            )
