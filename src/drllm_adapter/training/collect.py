"""One pass of the frozen model over the questions: what the routers read on the label path, into a feature store."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from ..adapter.base_identity import fingerprint
from ..adapter.calling import evaluating, last_position
from ..adapter.layer import observe_router_inputs, routed_layers
from ..adapter.steering import force_decisions
from ..decisions import EXECUTE, check
from ..errors import DrLLMError, Interrupted, check_range
from ..jobs import ALONE, Processes, job_progress, stop_on_signals, work_through
from .features import FeatureStore, write_features

_MOST_PIECES = 1_000
"""Shards: their folder is listed once a shard, so their number may not grow with the questions."""
_PROVENANCE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


def collect_features(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    labels: NDArray[np.int8],
    folder: str | os.PathLike[str],
    *,
    ids: Sequence[str] | None = None,
    add_special_tokens: bool | Sequence[bool] = True,
    batch_size: int = 16,
    processes: Processes = ALONE,
    console: Console | None = None,
    log: TextIO | None = None,
) -> FeatureStore:
    """The features of the questions: found in `folder` when nothing they depend on has changed, else collected.

    Each question runs through the model once, on its label path, in batches of similar length. The features depend on
    the base's weights, configuration and dtype, the prompts' tokens, the labels, the number of windows and the blocks
    with routers, not on the routers' weights. Several processes share the pass when each calls this with the same
    arguments; the batches of an interrupted run are kept.

    Args:
        model: a causal language model with a DrLLM adapter, which must be active.
        tokenizer: its tokenizer.
        prompts: N texts, all that the routers read of each question.
        labels: int8 [N, L], the decision of each of the model's L blocks; this path is forced. A block without a
            router executes whatever its label, here as when the adapter is used.
        folder: of the store; one store a folder, replaced when something changed.
        ids: N names for messages and for the validation split; None numbers the questions.
        add_special_tokens: whether the tokenizer adds its special tokens, for all prompts or for each; false for
            texts that a chat template made.
        batch_size: questions a forward pass.
        processes: this one among those that share the work.
        console: a progress bar on a terminal; None shows nothing.
        log: progress goes here as JSON lines instead.

    Raises:
        DrLLMError: labels of the wrong shape or value, a prompt that is empty or longer than the model's positions,
            hidden states that are not finite (all name the question), arguments of different lengths, a folder that
            belongs to something else or that another run writes to, or a full disk.
        Interrupted: on SIGINT or SIGTERM, after the batches in flight: one, or more of more than 1,000.
    """
    names = [str(row) for row in range(len(prompts))] if ids is None else [str(name) for name in ids]
    flags = [add_special_tokens] * len(prompts) if isinstance(add_special_tokens, bool) else list(add_special_tokens)
    _check_counts(len(prompts), len(names), len(flags), batch_size)
    blocks = routed_layers(model)
    config = blocks[0].active_config
    if config is None:
        raise DrLLMError("a router adapter must be active to be trained, but none is; enable it or call set_adapter.")
    layers = config.routed_blocks(len(blocks))
    labels = _checked_labels(np.asarray(labels), names, len(blocks))
    labels[:, [block for block in range(len(blocks)) if block not in layers]] = EXECUTE

    def tokens_of(row: int) -> list[int]:
        found: list[int] = tokenizer(prompts[row], add_special_tokens=flags[row])["input_ids"]
        return found

    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    def look_at_tokens() -> tuple[NDArray[np.int32], str]:
        """How many tokens each prompt has and a hash of all; they are made again by the batch, and none is kept."""
        lengths = np.zeros(len(names), dtype=np.int32)

        def reading() -> Iterator[list[int]]:
            for place, (name, prompt, flag) in enumerate(zip(names, prompts, flags, strict=True)):
                tokens = tokenizer(prompt, add_special_tokens=flag)["input_ids"]
                _check_length(tokens, name, limit)
                lengths[place] = len(tokens)
                yield tokens

        digest = _digest_of(reading())
        return lengths, digest

    lengths, tokens_digest = processes.from_main(look_at_tokens)
    width = config.hidden_size
    assert width is not None
    identity = {
        "base": fingerprint(model),
        "config": _digest(_computing_config(model)),
        "dtype": str(model.dtype),
        "tokens": tokens_digest,
        "labels": _digest_of(row.tolist() for row in labels),
        "ids": _digest_of(names),
        "layers": layers,
        "windows": config.num_windows,
        "rms_norm": config.rms_norm,
        "width": width,
    }
    key = _digest(identity)
    if processes.from_main(lambda: FeatureStore.find(folder, key) is not None):
        return _found(folder, key)

    # Similar lengths together, and the batch that needs the most memory first.
    longest_first = np.argsort(-lengths, kind="stable")
    batches = [longest_first[start : start + batch_size] for start in range(0, len(names), batch_size)]
    size = math.ceil(len(batches) / _MOST_PIECES)
    pieces = [batches[start : start + size] for start in range(0, len(batches), size)]
    counts = [sum(len(batch) for batch in piece) for piece in pieces]
    weights = [sum(int(lengths[batch].sum()) for batch in piece) for piece in pieces]
    collector = _Collector(model, tokenizer, tokens_of, labels, names, layers)
    with (
        evaluating(model),
        write_features(
            folder,
            key=key,
            ids=names,
            labels=labels,
            layers=layers,
            windows=config.num_windows,
            width=width,
            batch_size=batch_size,
            description=identity,
            processes=processes,
        ) as writer,
        stop_on_signals("batch", loud=processes.is_main) as stop,
        job_progress(
            "features",
            "questions",
            len(names),
            weight=int(lengths.sum()),
            console=console if processes.is_main else None,
            log=log if processes.is_main else None,
        ) as progress,
    ):

        def do(piece: int) -> bytes:
            return writer.piece((batch.tolist(), *collector.run(batch)) for batch in pieces[piece])

        def show(finished: Mapping[int, Path]) -> None:
            progress.update(sum(counts[piece] for piece in finished), sum(weights[piece] for piece in finished))

        show(writer.shards.finished())
        try:
            work_through(range(len(pieces)), do, writer.shards, writer.locks, stop, show)
            while processes.is_main and writer.windows() is None:  # a shard was damaged meanwhile
                work_through(range(len(pieces)), do, writer.shards, writer.locks, stop, show)
        except Interrupted as error:
            raise Interrupted(
                f"stopped; the features of {progress.done:,.0f} of {len(names):,} questions are saved in {folder}; "
                f"go on with the same command and --resume."
            ) from error
    return _found(folder, key)


def _found(folder: str | os.PathLike[str], key: str) -> FeatureStore:
    store = FeatureStore.find(folder, key)
    assert store is not None
    return store


class _Collector:
    """Runs questions along their label paths and gives what the routers read."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        tokens_of: Callable[[int], list[int]],
        labels: NDArray[np.int8],
        names: Sequence[str],
        layers: Sequence[int],
    ) -> None:
        self._model, self._tokens_of, self._labels, self._names, self._layers = model, tokens_of, labels, names, layers
        self._padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0

    @torch.inference_mode()
    def run(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Window means [B, R, K, d] and the number of windows used [B] of the questions `rows` [B], on the CPU."""
        tokens = [torch.tensor(self._tokens_of(int(row))) for row in rows]
        # Padded on the right, where positions counted from the left are right for every architecture.
        input_ids = nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=self._padding)
        lengths = torch.tensor([len(row) for row in tokens])
        attention_mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
        read: dict[int, Tensor] = {}

        def keep(block: int, means: Tensor, windows: Tensor) -> None:
            if block in self._layers:
                read[block] = means

        device = self._model.device
        with (
            force_decisions(self._model, torch.from_numpy(self._labels[rows])),
            observe_router_inputs(self._model, keep),
        ):
            self._model(
                input_ids=input_ids.to(device),
                attention_mask=attention_mask.to(device),
                use_cache=False,
                logits_to_keep=last_position(),
            )
        # All blocks' at once: reading them one by one would make the device wait after every block.
        means = torch.stack([read[layer].to(device) for layer in self._layers], dim=1).cpu()
        finite = means.isfinite().all(dim=-1).all(dim=-1)
        if not finite.all():
            # The first block that read such values, in whichever question.
            place, question = (~finite).T.nonzero()[0].tolist()
            raise DrLLMError(
                f"hidden states must be finite, but block {self._layers[place]} reads NaN or infinite values for "
                f"question {self._names[rows[question]]!r}; leave that question out or load the base model in float32."
            )
        return means, lengths.clamp(max=means.shape[2])


def _computing_config(model: Any) -> dict[str, Any]:
    """The base's configuration without what says only where the model came from or what wrote it."""
    config: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    return {name: value for name, value in sorted(config.items()) if name not in _PROVENANCE}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _digest_of(items: Iterable[Any]) -> str:
    """As `_digest` of the list of these items, of which one at a time is in memory."""
    digest, between = hashlib.sha256(b"["), b""
    for item in items:
        digest.update(between + json.dumps(item).encode())
        between = b", "
    digest.update(b"]")
    return digest.hexdigest()


def _check_counts(prompts: int, names: int, flags: int, batch_size: int) -> None:
    for what, count in (("ids", names), ("add_special_tokens", flags)):
        if count != prompts:
            raise DrLLMError(
                f"{what} must have one value for each of the {prompts} prompts, but {count} were given; give "
                f"{prompts} values."
            )
    check_range("batch_size", batch_size, 1, math.inf)


def _checked_labels(labels: NDArray[Any], names: Sequence[str], num_blocks: int) -> NDArray[np.int8]:
    """A copy of the labels as int8 [N, L]."""
    if labels.shape != (len(names), num_blocks) or not names or labels.dtype.kind not in "iu":
        raise DrLLMError(
            f"labels must be whole numbers [{len(names)} questions, {num_blocks} blocks], at least one question, but "
            f"{labels.dtype} {list(labels.shape)} was given; search these questions with this base model."
        )
    for name, row in zip(names, labels.tolist(), strict=True):
        try:
            check(row, num_blocks)
        except DrLLMError as error:
            raise DrLLMError(f"question {name!r}: {error}") from error
    return labels.astype(np.int8)


def _check_length(tokens: Sequence[int], name: str, limit: int | None) -> None:
    if not tokens:
        raise DrLLMError(f"every prompt must have tokens, but that of question {name!r} has none; leave it out.")
    if limit is not None and len(tokens) > limit:
        raise DrLLMError(
            f"a prompt must fit the model's {limit} positions, but that of question {name!r} has {len(tokens)} tokens; "
            f"leave it out."
        )
