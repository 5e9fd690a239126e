"""Evidence on the model that ships with the package: routers against every baseline, and ways of supervision compared.

For every seed: draw k-hop questions, search paths, train routers by each way of supervision on the same paths, refine
those of the default way on policy, evaluate on fresh questions, the refined ones with all baselines and every control.
Writes `evidence.json`, `evidence.md` (the tables of docs/evidence.md) and, for each seed, the folder of each step with
its figures. Everything runs offline.

    python examples/evidence_demo.py --output evidence-demo
    python examples/evidence_demo.py --output quick --questions 120 --test-questions 100 --simulations 40 --seeds 0
"""

import argparse
import time
from pathlib import Path
from typing import Any

from evidence_tables import markdown
from rich.console import Console

from drllm_adapter.demo import BASE
from drllm_adapter.evaluation import Report
from drllm_adapter.files import write_json_atomic, write_text_atomic
from drllm_adapter.search import SearchConfig
from drllm_adapter.tasks import load_questions
from drllm_adapter.training import RefineConfig, TrainingConfig
from drllm_adapter.workflow import Labels, evaluate_adapter, refine_adapter, search_paths, train_adapter
from drllm_adapter.workflow.demo import LABELS, REFINE_STEPS

PRICE = LABELS.price

REFINED = "refined"
"""The default way and then `drllm refine`, as in the demo: what is compared with all baselines."""
WAYS = {
    "weighted": Labels("weighted", PRICE),
    "effects": Labels("effects", PRICE),
    "price": Labels("price", PRICE),
    "shortest (paper)": Labels("shortest"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for everything")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--questions", type=int, default=500, help="to search and train on")
    parser.add_argument("--test-questions", type=int, default=500, help="to evaluate on")
    parser.add_argument("--simulations", type=int, default=80, help="paths tried a question")
    options = parser.parse_args()

    console = Console()
    started = time.perf_counter()
    runs = []
    for seed in options.seeds:
        runs.append(run_seed(options.output / f"seed-{seed}", seed, options, console))
        result = {
            "command": f"python examples/evidence_demo.py --seeds {' '.join(map(str, options.seeds))} "
            f"--questions {options.questions} --test-questions {options.test_questions} "
            f"--simulations {options.simulations}",
            "seconds": time.perf_counter() - started,
            "runs": runs,
        }
        write_json_atomic(options.output / "evidence.json", result)
        write_text_atomic(options.output / "evidence.md", markdown(runs))
    console.print(markdown(runs), highlight=False, markup=False)
    console.print(f"{time.perf_counter() - started:.0f} s. In {options.output}: evidence.json, evidence.md.")


def run_seed(folder: Path, seed: int, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The reports of one seed as plain values: of the default way with baselines and sweep, of the others without."""
    started = time.perf_counter()
    base, paths = str(BASE), folder / "paths"
    # Different seeds draw different questions: those of the evaluation were never searched or trained on.
    to_search = load_questions("khop", limit=options.questions, seed=2 * seed)
    to_test = load_questions("khop", limit=options.test_questions, seed=2 * seed + 1)
    console.rule(f"seed {seed}: search")
    config = SearchConfig(simulations=options.simulations, seed=seed)
    searched = search_paths(base, to_search, paths, mode="cloze", config=config, bundle=64, console=console)
    console.print(searched.table())

    adapters = {way: folder / f"adapter-{labels.rule}" for way, labels in WAYS.items()}
    for way, labels in WAYS.items():
        console.rule(f"seed {seed}: {way}")
        config_of = TrainingConfig(seed=seed)
        train_adapter(paths, adapters[way], rule=labels.rule, price=labels.price, config=config_of, console=console)
    console.rule(f"seed {seed}: {REFINED}")
    refined = folder / "adapter-refined"
    more = load_questions("khop", limit=2 * options.questions, seed=2 * seed)
    steps = RefineConfig(max_steps=REFINE_STEPS, price=PRICE, seed=seed)
    refine_adapter(str(adapters["weighted"]), more, refined, mode="cloze", config=steps, console=console)

    reports: dict[str, Any] = {}
    for way, adapter in {REFINED: refined, **adapters}.items():
        report: Report = evaluate_adapter(
            str(adapter),
            to_test,
            folder / f"evaluation-{adapter.name.removeprefix('adapter-')}",
            mode="cloze",
            batch_size=64,
            supervision=paths if way == REFINED else None,
            sweep=way == REFINED,
            console=console,
        )
        console.print(report.table())
        if report.baselines is not None:
            console.print(report.baselines.table())
        reports[way] = report.to_json()
    return {"seed": seed, "seconds": time.perf_counter() - started, "reports": reports}


if __name__ == "__main__":
    main()
