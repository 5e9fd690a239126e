"""Evidence on SmolLM2-135M-Instruct: routers on a mixture of unlike tasks against every baseline.

Six tasks by likelihood alone: ARC-Easy, ARC-Challenge, MMLU (STEM) and LogiQA by the likelihood of each choice, GSM8K
and MATH by the likelihood of the final answer against those of other questions (`--mode contrast`). Paths are tried on
training questions, routers trained by each way of supervision on the same paths, and evaluated on held-out questions.
Writes `evidence.json`, `evidence.md` (the tables of docs/evidence.md), the supervision set and the adapters.

    python examples/evidence_smollm2.py --data DATA --output evidence-smollm2

DATA holds arc_easy_train.jsonl, arc_easy_test_a.jsonl, arc_challenge_train.jsonl, mmlu_stem_test.jsonl,
logiqa_en.jsonl, gsm8k_train.jsonl and math_levels.jsonl, a question a line as for `drllm search --task jsonl`. ARC-Easy
is tested on its own test file; of the others, which have one file here, the half whose questions hash to an even number
is searched and the other half tested.
"""

import argparse
import hashlib
import json
import random
import time
from pathlib import Path
from typing import Any

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
LONGEST = 700  # characters of a question; longer ones cost several times as much as the others
# The first is compared with all baselines.
WAYS = ("effects", "weighted", "shortest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the question files")
    parser.add_argument("--output", type=Path, required=True, help="folder for everything")
    parser.add_argument("--base", default=BASE, help="the model: a folder or a name on the Hub")
    parser.add_argument("--questions", type=int, default=40, help="to search, of each task")
    parser.add_argument("--test-questions", type=int, default=60, help="to evaluate on, of each task")
    parser.add_argument("--paths", type=int, default=20, help="random paths tried on each question")
    parser.add_argument("--router-width", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the routers' training")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="supervision to train by")
    parser.add_argument("--price", type=float, default=0.4, help="of L block passes, in probability")
    parser.add_argument("--sweep", action="store_true", help="also run every control over its range: 14 settings more")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()

    console, started, folder = Console(), time.perf_counter(), options.output
    folder.mkdir(parents=True, exist_ok=True)
    to_search, to_test = mixture(options)
    paths = folder / "paths"
    if not (paths / "summary.json").exists():  # whatever was begun goes on
        config = SearchConfig(method="random", simulations=options.paths, seed=0)
        searched = search_paths(
            options.base, to_search, paths, mode="contrast", config=config, labels=Labels("effects", options.price),
            resume=paths.exists(), dtype=options.dtype, console=console,
        )  # fmt: skip
        console.print(searched.table())
    runs: list[dict[str, Any]] = []
    for way in options.ways:
        for seed in options.seeds:
            runs.append(run(folder, way, seed, to_test, options, console))
            result = {"settings": vars(options) | {"data": options.data.name, "output": folder.name}, "runs": runs}
            write_json_atomic(folder / "evidence.json", json.loads(json.dumps(result, default=str)))
            write_text_atomic(folder / "evidence.md", markdown(runs))
    console.print(markdown(runs), highlight=False, markup=False)
    console.print(f"{time.perf_counter() - started:.0f} s. In {folder}: evidence.json, evidence.md, adapters.")


def mixture(options: argparse.Namespace) -> tuple[list[Question], list[Question]]:
    """Questions to search and to test, equally many of each task; written to `output` as well."""
    parts: dict[str, list[dict[str, Any]]] = {"search": [], "test": []}
    for task, (train, test) in FILES.items():
        rows = [row | {"half": "search" if even(row) else "test"} for row in read(options.data / train, task)]
        if test is not None:
            rows = [row | {"half": "search"} for row in rows]
            rows += [row | {"half": "test"} for row in read(options.data / test, task)]
        random.Random(0).shuffle(rows)
        for half, limit in (("search", options.questions), ("test", options.test_questions)):
            kept = [row for row in rows if row["half"] == half and len(row["question"]) <= LONGEST]
            parts[half] += kept[:limit]
    found = []
    for half, rows in parts.items():
        path = options.output / f"{half}.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        found.append(load_questions("jsonl", str(path)))
    return found[0], found[1]


def read(path: Path, task: str) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [
        {**json.loads(line), "id": f"{path.stem}-{number}", "task": task, "level": None}
        for number, line in enumerate(lines)
    ]


def even(row: dict[str, Any]) -> bool:
    return hashlib.sha256(row["question"].encode()).digest()[0] % 2 == 0


def run(
    folder: Path, way: str, seed: int, to_test: list[Question], options: argparse.Namespace, console: Console
) -> dict[str, Any]:
    """Train by one way with one seed, and evaluate; what is there already is read.

    Baselines (and with --sweep controls) are run for the first way and seed alone.
    """
    console.rule(f"{way}, seed {seed}")
    first = way == options.ways[0] and seed == options.seeds[0]
    adapter = folder / f"adapter-{way}-{seed}"
    done = adapter / "evaluation" / "report.json"
    if done.exists():
        return {"way": way, "seed": seed, "report": json.loads(done.read_text(encoding="utf-8"))}
    train_adapter(
        folder / "paths", adapter, rule=way, price=options.price, config=TrainingConfig(seed=seed),
        adapter=DrLLMConfig(router_width=options.router_width), features=folder / f"features-{way}",
        base=options.base, dtype=options.dtype, console=console,
    )  # fmt: skip
    report = evaluate_adapter(
        str(adapter), to_test, adapter / "evaluation", mode="contrast", base=options.base, dtype=options.dtype,
        supervision=folder / "paths" if first else None,
        effort=Effort(greedy_questions=60, greedy_candidates=3, state_prompts=24, oracle_questions=24),
        sweep=first and options.sweep, console=console,
    )  # fmt: skip
    console.print(report.table())
    if report.baselines is not None:
        console.print(report.baselines.table())
    return {"way": way, "seed": seed, "report": report.to_json()}


def markdown(runs: list[dict[str, Any]]) -> str:
    """The tables."""
    lines = ["| supervision | seed | base | routed | difference | mean passes |", "|---|---|---|---|---|---|"]
    for item in runs:
        report = item["report"]
        lines.append(
            f"| {item['way']} | {item['seed']} | {percent(report['base']['value'], report['base']['interval'])} | "
            f"{percent(report['routed']['value'], report['routed']['interval'])} | "
            f"{percent(report['difference'], report['difference_interval'], '+')} | "
            f"{report['mean_passes']:.2f} of {report['num_blocks']} |"
        )
    table = runs[0]["report"].get("baselines")
    if table is None:
        return "\n".join(lines) + "\n"
    lines += ["", "| path | passes | right | routed - it |", "|---|---|---|---|"]
    own = table["routed"]
    lines.append(f"| **routed** | {own['passes']:.2f} | {percent(own['accuracy'], own['interval'])} | |")
    for row in table["baselines"]:
        lines.append(
            f"| {row['name']} | {row['passes']:.2f} | {percent(row['accuracy'], row['interval'])} | "
            f"{percent(row['difference'], row['difference_interval'], '+')} |"
        )
    for name in ("search", "chance"):
        oracle = table["oracles"][name]
        lines.append(
            f"| oracle of {name} ({table['oracles']['questions']} training questions, base "
            f"{100 * oracle['base']:.1f}) | {oracle['passes']:.2f} | {100 * oracle['accuracy']:.1f} | |"
        )
    return "\n".join(lines) + "\n"


def percent(value: float, interval: list[float], sign: str = "") -> str:
    return f"{100 * value:{sign}.1f} [{100 * interval[0]:{sign}.1f}, {100 * interval[1]:{sign}.1f}]"


if __name__ == "__main__":
    main()
