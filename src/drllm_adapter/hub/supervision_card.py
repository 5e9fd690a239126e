"""The dataset card of a supervision set."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, RepoCard

from ..decisions import CLASS_NAMES
from ..errors import DrLLMError
from ..evaluation.figures import plot_decisions
from ..reporting.percentages import percent
from ..search.runner import SUMMARY
from ..supervision.rows import DATA, label_counts, read_search_info
from .wording import SUPERVISION_TEMPLATE, TAGS, base_link, base_name, base_option, constants, facts, source_names

LABELS_FIGURE = "labels.png"
_LICENCES = {
    "allenai/ai2_arc": "cc-by-sa-4.0",
    "cais/mmlu": "mit",
    "hkust-nlp/dart-math-pool-math": "mit",
    "openai/gsm8k": "mit",
    "khop": "apache-2.0",
}


def supervision_card(folder: Path, name: str) -> RepoCard:
    """The card of a finished set that is called `name` where it will lie; draws its figure into the folder.

    Raises:
        DrLLMError: the set is not finished.
    """
    # Imported here: slow to load, and only this card needs them.
    from datasets import DatasetInfo, Features, SplitDict, SplitInfo
    from datasets.info import DatasetInfosDict
    from pyarrow import parquet

    info = read_search_info(folder)
    data = folder / DATA
    try:
        file = parquet.ParquetFile(data)
        summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DrLLMError(
            f"the supervision set {folder} must be finished to have a card, but its search was interrupted; go on with "
            f"drllm search --resume."
        ) from error
    rows = file.metadata.num_rows
    base = str(info["base_model"])
    sources: list[dict[str, Any]] = info.get("sources", [])
    counts = label_counts(data, info["num_blocks"])
    plot_decisions(counts, folder / LABELS_FIGURE, title=f"Labels of {summary['kept']:,} questions by block")
    licences = list(dict.fromkeys(_LICENCES.get(source["name"]) for source in sources))
    known = [licence for licence in licences if licence is not None]
    size = sum(file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups))
    splits = SplitDict()
    splits.add(SplitInfo("train", num_bytes=size, num_examples=rows))
    described = DatasetInfo(
        features=Features.from_arrow_schema(file.schema_arrow),
        splits=splits,
        download_size=data.stat().st_size,
        dataset_size=size,
    )
    data_card = DatasetCardData(
        license=None if None in licences or not known else known[0] if len(known) == 1 else known,
        task_categories=["text-generation"],
        source_datasets=[source["name"] for source in sources if source["hub"]] or None,
        tags=list(TAGS),
        pretty_name=f"Layer paths of {base_name(base)}",
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    )
    DatasetInfosDict({"default": described}).to_dataset_card_data(data_card)
    return DatasetCard.from_template(
        data_card,
        template_str=SUPERVISION_TEMPLATE,
        title=f"Layer paths of {base_name(base)}",
        name=name,
        rows=f"{rows:,}",
        base_link=base_link(base, info["base_revision"]),
        base_option=base_option(base),
        num_blocks=info["num_blocks"],
        found=_found(summary, counts.sum(axis=0).tolist()),
        search=facts(
            {
                "questions": f"{rows:,} of {source_names(sources) or 'a source that was not recorded'}",
                "base model": f"{base_link(base, info['base_revision'])}, {info['dtype']}, weights "
                f"`{info['base_fingerprint']}`",
                "search": constants(info["search"]),
                "labels": constants({"rule": info["rule"], "price": info["price"]}),
            }
        ),
        licence=_licence_text(sources),
    )


def _found(summary: Mapping[str, Any], classes: Sequence[int]) -> str:
    along = {"agreement with the base along the label": percent(summary.get("label_agreement"))}
    if summary.get("label_agreement") is None:
        along = {
            "right along the base model's own path": percent(summary["base_accuracy"]),
            "right along the label": percent(summary["label_accuracy"]),
            "wrong questions whose label is right": percent(summary["fixed"]),
            "right questions whose label is wrong": percent(summary["broken"]),
        }
    found = {
        "questions with a label": f"{summary['kept']:,} of {summary['questions']:,}",
        **along,
        "block passes of the labels": f"{summary['mean_passes']:.2f} on average, base {summary['num_blocks']}",
        "decisions of the labels": ", ".join(
            f"{name} {percent(count / max(1, sum(classes)))}" for name, count in zip(CLASS_NAMES, classes, strict=True)
        ),
        "paths scored": f"{summary['paths']:,}",
    }
    return (
        f"{facts(found)}\n\nA label is the best of many tries on its own question, so what it reaches is no forecast "
        f"of what trained routers reach.\n\n![Labels by block]({LABELS_FIGURE})"
    )


def _licence_text(sources: Sequence[Mapping[str, Any]]) -> str:
    if not sources:
        return "Where the questions come from was not recorded. Find out before you share this set."
    known = [f"- {source_names([source])}: {_LICENCES.get(source['name'], 'not known here')}" for source in sources]
    text = "The prompts contain the questions, whose licence goes with them:\n\n" + "\n".join(known)
    if any(source["name"] not in _LICENCES for source in sources):
        text += "\n\nFind out the licence of a source that is not known here before you share this set."
    return text
