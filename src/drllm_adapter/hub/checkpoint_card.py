"""The model card of an unrolled checkpoint: which blocks of which base, and what was measured of that path."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, RepoCard

from ..decisions import REPEAT, SKIP, draw, passes
from ..errors import DrLLMError
from ..models.download import is_hub_name, split_revision
from ..models.unroll import UNROLLED
from ..reporting.percentages import with_interval
from .wording import CHECKPOINT_TEMPLATE, TAGS, base_link, base_name, facts, source_names


def checkpoint_card(folder: Path, name: str) -> RepoCard:
    """The card of a checkpoint that `drllm export` wrote and that is called `name` where it will lie.

    Raises:
        DrLLMError: its `unrolled.json` is damaged.
    """
    try:
        told: dict[str, Any] = json.loads((folder / UNROLLED).read_text(encoding="utf-8"))
        base, decisions = str(told["base"]), [int(decision) for decision in told["decisions"]]
        return _card(told, base, decisions, name)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DrLLMError(
            f"{folder / UNROLLED} must be what drllm export wrote, but it is damaged; export again."
        ) from error


def _card(told: Mapping[str, Any], base: str, decisions: Sequence[int], name: str) -> RepoCard:
    on_hub = is_hub_name(base)
    return ModelCard.from_template(
        ModelCardData(
            base_model=split_revision(base)[0] if on_hub else None,
            base_model_relation="merge" if on_hub else None,
            library_name="transformers",
            pipeline_tag="text-generation",
            tags=list(TAGS),
        ),
        template_str=CHECKPOINT_TEMPLATE,
        title=f"{base_name(base)} along one path",
        name=name,
        base_link=base_link(base, told["base_revision"]),
        model_type=told["model_type"],
        num_blocks=len(decisions),
        passes=passes(decisions),
        edits=_edits(decisions),
        path=draw(decisions),
        results=_results(told["measured"]),
        made=facts(
            {
                "path chosen": told["chosen"],
                "decisions": ", ".join(map(str, decisions)),
                "made with": f"drllm-adapter {told['version']}",
            }
        ),
    )


def _edits(decisions: Sequence[int]) -> str:
    named = {
        name: [str(block) for block, its in enumerate(decisions) if its == decision]
        for name, decision in (("left out", SKIP), ("run twice", REPEAT))
    }
    parts = [f"{', '.join(blocks)} {name}" for name, blocks in named.items() if blocks]
    return f"blocks {'; '.join(parts)}" if parts else "every block once"


def _results(measured: Mapping[str, Any] | None) -> str:
    if measured is None:
        return "Nothing has been measured yet."
    lines = [
        f"On {measured['questions']} questions ({source_names(measured['sources'])}; {measured['settings']}), with "
        f"95 % intervals where there are any. {measured['how']}",
        "",
        "| path | block passes | right, % |",
        "|---|---|---|",
    ]
    for row in measured["rows"]:
        interval = row.get("interval")
        right = f"{100 * row['accuracy']:.1f}" if interval is None else with_interval(row["accuracy"], interval)
        lines.append(f"| {row['name']} | {row['passes']:.2f} | {right} |")
    return "\n".join(lines)
