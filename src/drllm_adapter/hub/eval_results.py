"""Results as the Hub's benchmarks read them, beside those in the card: https://huggingface.co/docs/hub/eval-results."""

from collections.abc import Sequence
from pathlib import Path

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from ..files import write_text_atomic
from .reports import Evaluation
from .wording import MEASURED_BY

FOLDER = ".eval_results"
# Tasks that benchmarks name otherwise than by the configuration of their dataset.
_TASK_IDS = {"openai/gsm8k": "gsm8k"}


def write_eval_results(adapter: Path, measured: Sequence[Evaluation]) -> None:
    """Write one file for each evaluation on one dataset of the Hub, and take away those of evaluations that are gone.

    A leaderboard shows what it knows: a dataset that is no benchmark, and files of others, do no harm.
    """
    folder = adapter / FOLDER
    for path in folder.glob("*.yaml"):
        if MEASURED_BY in path.read_text(encoding="utf-8"):
            path.unlink()
    for evaluation in measured:
        entries = [
            EvalResultEntry(
                dataset_id=result.dataset,
                task_id=_TASK_IDS.get(result.dataset, result.config or "default"),
                value=round(100 * result.routed, 2),
                source_url=MEASURED_BY,
                source_name="drllm eval",
                notes=f"routed: {evaluation.mean_passes:.2f} of {evaluation.num_blocks} block passes; base "
                f"{100 * result.base:.2f}; {result.count} questions of {result.split} ({evaluation.settings})",
            )
            for result in evaluation.results
            if result.dataset in evaluation.hub_datasets
        ]
        if entries:
            folder.mkdir(exist_ok=True)
            text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, width=1000)
            write_text_atomic(folder / f"{evaluation.name}.yaml", text)
