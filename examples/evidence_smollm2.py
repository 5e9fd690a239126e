"""Evidence on SmolLM2-135M-Instruct: routers on a mixture of unlike tasks against every baseline.

Six tasks by likelihood alone: ARC-Easy, ARC-Challenge, MMLU (STEM) and LogiQA by the likelihood of each choice, GSM8K
and MATH by the likelihood of the final answer against those of other questions (`--mode contrast`). Paths are tried on
training questions, routers trained by each way of supervision on the same paths, and evaluated on held-out questions.
Every seed draws other questions to search and to test, other paths and other initial weights. Writes `evidence.json`,
`evidence.md` (the tables of docs/evidence.md), the supervision sets and the adapters; what is there is not made again.

    python examples/evidence_smollm2.py --data DATA --output evidence-smollm2

DATA holds arc_easy_train.jsonl, arc_easy_test_a.jsonl, arc_challenge_train.jsonl, mmlu_stem_test.jsonl,
logiqa_en.jsonl, gsm8k_train.jsonl and math_levels.jsonl, a question a line as for `drllm search --task jsonl`;
docs/evidence.md says which questions these are, and writes those of ARC. ARC-Easy is tested on its own test file. Of
the others, which have one file here, a hash of the question decides: a half is tested, a quarter searched, and a
quarter is left for a continued training of the base (`training.jsonl`, see `train_robust_base.py`).
"""

import argparse
import hashlib
import json
import random
import time
from pathlib import Path
from typing import Any

from evidence_tables import markdown
from rich.console import Console

from drllm_adapter import DrLLMConfig
from drllm_adapter.evaluation import Effort
from drllm_adapter.files import write_json_atomic, write_text_atomic
from drllm_adapter.search import SearchConfig
from drllm_adapter.tasks import Question, load_questions
from drllm_adapter.training import TrainingConfig
from drllm_adapter.workflow import Labels, evaluate_adapter, search_paths, train_adapter

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
FILES = {
    "arc_easy": ("arc_easy_train.jsonl", "arc_easy_test_a.jsonl"),
    "arc_challenge": ("arc_challenge_train.jsonl", None),
    "mmlu_stem": ("mmlu_stem_test.jsonl", None),
    "logiqa": ("logiqa_en.jsonl", None),
    "gsm8k": ("gsm8k_train.jsonl", None),
    "math": ("math_levels.jsonl", None),
}
PARTS = ("search", "test", "training", "test")
LONGEST = 700  # characters of a question; longer ones cost several times as much as the others
# The first is compared with all baselines, but for routers held to a loss, which may be the base itself.
WAYS = ("effects", "weighted", "shortest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the question files")
    parser.add_argument("--output", type=Path, required=True, help="folder for everything")
    parser.add_argument("--base", default=BASE, help="the model: a folder or a name on the Hub")
    parser.add_argument("--questions", type=int, default=40, help="to search, of each task and seed")
    parser.add_argument("--test-questions", type=int, default=40, help="to evaluate on, of each task and seed")
    parser.add_argument("--paths", type=int, default=20, help="random paths tried on each question")
    parser.add_argument("--router-width", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="supervision to train by")
    parser.add_argument("--price", type=float, default=0.4, help="of L block passes, in probability")
    parser.add_argument("--max-loss", type=float, help="points that routers may lose on held-out questions")
    parser.add_argument("--sweep", action="store_true", help="also run every control over its range: 14 settings more")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()

    console, started, folder = Console(), time.perf_counter(), options.output
    parts = split(options.data)
    write_questions(folder / "training.jsonl", [row for rows in parts["training"].values() for row in rows])
    runs: list[dict[str, Any]] = []
    for seed in options.seeds:
        console.rule(f"seed {seed}")
        to_search = draw(parts["search"], options.questions, seed, folder / f"seed-{seed}" / "search.jsonl")
        to_test = draw(parts["test"], options.test_questions, seed, folder / f"seed-{seed}" / "test.jsonl")
        search(folder / f"seed-{seed}" / "paths", to_search, seed, options, console)
        reports = {way: report(folder / f"seed-{seed}", way, seed, to_test, options, console) for way in options.ways}
        runs.append({"seed": seed, "reports": reports})
        result = {"settings": vars(options) | {"data": options.data.name, "output": folder.name}, "runs": runs}
        write_json_atomic(folder / "evidence.json", json.loads(json.dumps(result, default=str)))
        write_text_atomic(folder / "evidence.md", markdown(runs))
    console.print(markdown(runs), highlight=False, markup=False)
    console.print(f"{time.perf_counter() - started:.0f} s. In {folder}: evidence.json, evidence.md, adapters.")


def split(data: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Questions by part - search, training, test - and task, in an order of their own."""
    parts: dict[str, dict[str, list[dict[str, Any]]]] = {part: {task: [] for task in FILES} for part in PARTS}
    for task, (train, test) in FILES.items():
        for row in read(data / train, task):
            part = PARTS[hashlib.sha256(row["question"].encode()).digest()[0] % len(PARTS)]
            # ARC-Easy, which has a file to test on, leaves nothing of this one out.
            parts["search" if test is not None and part == "test" else part][task].append(row)
        if test is not None:
            parts["test"][task] = read(data / test, task)
    for rows in (rows for part in parts.values() for rows in part.values()):
        random.Random(0).shuffle(rows)
    return parts


def draw(part: dict[str, list[dict[str, Any]]], count: int, seed: int, path: Path) -> list[Question]:
    """`count` questions of each task, others for every seed; written to `path` as well."""
    for task, rows in part.items():
        if len(rows) < count * (seed + 1):
            raise SystemExit(f"{task} has {len(rows)} questions, too few for {count} of them with seed {seed}.")
    write_questions(path, [row for rows in part.values() for row in rows[count * seed : count * (seed + 1)]])
    return load_questions("jsonl", str(path))


def write_questions(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))


def read(path: Path, task: str) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [
        {**json.loads(line), "id": f"{path.stem}-{number}", "task": task, "level": None}
        for number, line in enumerate(lines)
    ]
    return [row for row in rows if len(row["question"]) <= LONGEST]


def search(paths: Path, questions: list[Question], seed: int, options: argparse.Namespace, console: Console) -> None:
    """Random paths, the same way for every question; whatever was begun goes on."""
    if (paths / "summary.json").exists():
        return
    searched = search_paths(
        options.base, questions, paths, mode="contrast",
        config=SearchConfig(method="random", simulations=options.paths, seed=seed),
        labels=Labels("effects", options.price), resume=paths.exists(), dtype=options.dtype, console=console,
    )  # fmt: skip
    console.print(searched.table())


def report(
    folder: Path, way: str, seed: int, to_test: list[Question], options: argparse.Namespace, console: Console
) -> dict[str, Any]:
    """Train by one way with one seed, and evaluate, the first way against all baselines; what is there is read."""
    console.rule(f"seed {seed}, {way}")
    first = way == options.ways[0] and options.max_loss is None
    adapter = folder / f"adapter-{way}"
    done = adapter / "evaluation" / "report.json"
    if done.exists():
        return dict(json.loads(done.read_text(encoding="utf-8")))
    train_adapter(
        folder / "paths", adapter, rule=way, price=options.price, config=TrainingConfig(seed=seed),
        adapter=DrLLMConfig(router_width=options.router_width), features=folder / f"features-{way}",
        max_loss=options.max_loss, base=options.base, dtype=options.dtype, console=console,
    )  # fmt: skip
    result = evaluate_adapter(
        str(adapter), to_test, adapter / "evaluation", mode="contrast", base=options.base, dtype=options.dtype,
        supervision=folder / "paths" if first else None,
        effort=Effort(greedy_questions=60, greedy_candidates=3, state_prompts=24, oracle_questions=24),
        sweep=first and options.sweep, console=console,
    )  # fmt: skip
    console.print(result.table())
    if result.baselines is not None:
        console.print(result.baselines.table())
    return result.to_json()


if __name__ == "__main__":
    main()
