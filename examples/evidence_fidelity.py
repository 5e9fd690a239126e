"""Evidence on SmolLM2-135M-Instruct: routers learnt from prompts alone against every static path.

For each seed 13 kinds of prompts, real and made, are drawn (`fidelity_prompts.py`), 40 of each to train on and 16
others to test, and 16 of each of four kinds that are in no training. Routers learn from the base model's own
continuations (`drllm refine --mode self`); a depth control is chosen on held-out training prompts for each mean number
of passes, and once for `--max-loss 2`. Tested: agreement with the base's own tokens, against every baseline at exactly
the routers' mean number of passes. Writes `evidence.json`, `evidence.md` (the tables of docs/evidence.md),
`agreement.png` and the adapters; what is there is not made again.

    python examples/evidence_fidelity.py --data DATA --output evidence-fidelity

DATA holds the question files that evidence_smollm2.py names.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from evidence_tables import by_task, markdown, percent, pooled
from fidelity_prompts import draw
from rich.console import Console

from drllm_adapter import last_decisions
from drllm_adapter.decisions import Decisions, execute_all, metric, passes
from drllm_adapter.evaluation import BaselineTable, Effort, compare, compare_with_baselines
from drllm_adapter.evaluation.baselines import ScorePaths
from drllm_adapter.evaluation.contenders import Contender, best_mixture, comparison
from drllm_adapter.files import write_json_atomic, write_text_atomic
from drllm_adapter.models.loading import load_routed
from drllm_adapter.reporting.plotting import BLUE, GREEN, GREY, ORANGE, PALE, figure
from drllm_adapter.scoring.plain import Score, Scorer
from drllm_adapter.scoring.references import add_references
from drllm_adapter.scoring.shared_prefix import SharingScorer, score_paths
from drllm_adapter.search import SearchConfig
from drllm_adapter.supervision import read_rows
from drllm_adapter.tasks import Prompt, Question, build_prompts, load_questions
from drllm_adapter.training import RefineConfig
from drllm_adapter.training.trainer import split_questions
from drllm_adapter.workflow import refine_adapter, search_paths
from drllm_adapter.workflow.held_out import check_held_out

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
MEAN_PASSES = (28.9, 26.8)
MAX_LOSS = 2.0
JUDGED = 156
"""Training prompts that the baselines are chosen on: kinds alternate, so that all are among them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the question files")
    parser.add_argument("--output", type=Path, required=True, help="folder for everything")
    parser.add_argument("--base", default=BASE, help="the model: a folder or a name on the Hub")
    parser.add_argument("--train", type=int, default=40, help="prompts of each kind to train on")
    parser.add_argument("--test", type=int, default=16, help="prompts of each kind to test on")
    parser.add_argument("--paths", type=int, default=6, help="random paths a prompt that baselines are chosen by")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    runs = [one_seed(options, seed) for seed in options.seeds]
    options.output.mkdir(parents=True, exist_ok=True)
    write_json_atomic(options.output / "evidence.json", {"base": options.base, "runs": runs})
    write_text_atomic(options.output / "evidence.md", tables(runs))
    draw_agreement(runs, options.output / "agreement.png")
    print(f"Tables in {options.output / 'evidence.md'}.")


def one_seed(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Everything about one seed, from its file where there is one."""
    folder = options.output / str(seed)
    found = folder / "run.json"
    if found.exists():
        result: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
        return result
    console = Console()
    started = time.process_time()
    questions = {part: drawn(options, part, seed) for part in ("train", "test", "unseen")}
    config = RefineConfig(max_steps=0, price=1.0, seed=seed)
    if not (folder / "adapter").exists():
        refine_adapter(options.base, questions["train"], folder / "adapter", mode="self", config=config,
                       dtype=options.dtype, console=console)  # fmt: skip
    learnt = time.process_time() - started
    if not (folder / "paths").exists():
        random = SearchConfig(method="random", simulations=options.paths, seed=seed)
        search_paths(options.base, questions["train"][:JUDGED], folder / "paths", mode="self", config=random,
                     dtype=options.dtype, console=console)  # fmt: skip
    rows = read_rows(folder / "paths")

    model, tokenizer = load_routed(str(folder / "adapter"), base=options.base, dtype=options.dtype)
    sharing = SharingScorer(model, tokenizer)
    plain = Scorer(model, tokenizer)
    _, validation = split_questions([q.id for q in questions["train"]], config.validation_share, seed)
    asked = {part: questions[part] for part in ("test", "unseen")}
    asked["held"] = [questions["train"][row] for row in validation]
    prompts = {
        part: add_references(plain, build_prompts(chosen, "self", tokenizer), console=console)
        for part, chosen in asked.items()
    }
    score = remembering(sharing)
    run: dict[str, Any] = {"seed": seed, "cpu_seconds_learning": learnt, "reports": {}, "unseen": {}}
    limits = [{"mean_passes": limit, "max_loss": None} for limit in MEAN_PASSES]
    base = {part: [scores[0] for scores in score(prompts[part], [[execute_all(plain.num_blocks)]] * len(prompts[part]))]
            for part in ("test", "unseen")}  # fmt: skip
    for limit in [*limits, {"mean_passes": None, "max_loss": MAX_LOSS}]:
        # Passes are the same within a tenth on half of the prompts; what is lost needs all of them.
        judged = prompts["held"] if limit["max_loss"] is not None else prompts["held"][::2]
        setting = check_held_out(model, tokenizer, judged, **limit, console=console)
        name = f"at most {limit['mean_passes']} passes" if limit["max_loss"] is None else f"--max-loss {MAX_LOSS:g}"
        for part, key in (("test", "reports"), ("unseen", "unseen")):
            kinds = [question.task for question in questions[part]]
            routed = plain.score(prompts[part])
            report = compare(base[part], routed, [None] * len(routed), kinds).to_json()
            report["held_out"] = setting.to_json()
            run[key][name] = report
            if part == "test" and limit["max_loss"] is None:
                effort = Effort(greedy_questions=39, greedy_candidates=8, state_prompts=39, seed=seed)
                table = compare_with_baselines(model, tokenizer, routed, prompts[part], kinds, rows, score, effort)
                report["baselines"] = named(table)
                console.print(table.table())
            if part == "unseen" and limit["max_loss"] is None:
                report["static"] = static_on(
                    prompts[part], base[part], routed, run["reports"][name]["baselines"], score
                )
            agreement = 100 * report["routed"]["value"]
            console.print(f"{part}, {name}: {report['mean_passes']:.2f} passes, {agreement:.1f} %")
            write_json_atomic(folder / "so-far.json", run)
        if limit["mean_passes"] == MEAN_PASSES[-1]:
            run["speed"] = speed(model, tokenizer, prompts["test"][::8])
    run["cpu_seconds"] = time.process_time() - started
    write_json_atomic(found, run)
    return run


def drawn(options: argparse.Namespace, part: str, seed: int) -> list[Question]:
    rows = draw(options.data, part, options.train if part == "train" else options.test, seed)
    folder = options.output / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{part}.jsonl"
    write_text_atomic(file, "".join(json.dumps(row) + "\n" for row in rows))
    return load_questions("jsonl", str(file), with_answers=False)


def remembering(sharing: SharingScorer) -> ScorePaths:
    """Scores of prompts along paths, none of them computed twice."""
    known: dict[tuple[Prompt, Decisions], Score] = {}

    def score(prompts: Sequence[Prompt], paths: Sequence[Sequence[Decisions]]) -> list[list[Score]]:
        new = [[path for path in of_prompt if (prompt, path) not in known]
               for prompt, of_prompt in zip(prompts, paths, strict=True)]  # fmt: skip
        places = [place for place, of_prompt in enumerate(new) if of_prompt]
        found = score_paths(sharing, [prompts[place] for place in places], [new[place] for place in places])
        for place, scores in zip(places, found, strict=True):
            known.update({(prompts[place], path): item for path, item in zip(new[place], scores, strict=True)})
        return [[known[prompt, path] for path in of_prompt] for prompt, of_prompt in zip(prompts, paths, strict=True)]

    return score


def named(table: BaselineTable) -> dict[str, Any]:
    """As plain values; what a task router is to questions, a router that is told the kind is to prompts."""
    plain = table.to_json()
    for row in plain["baselines"]:
        row["name"] = "told the kind" if row["name"] == "task router" else row["name"]
    return plain


def static_on(
    prompts: Sequence[Prompt], base: Sequence[Score], routed: Sequence[Score], table: dict[str, Any], score: ScorePaths
) -> dict[str, Any]:
    """Routed against the greedy static paths of the tested kinds on other prompts, at equal mean passes."""
    paths = [tuple(row["decisions"]) for row in table["static"] if row["name"].startswith("static, greedy")]
    points = [outcomes("base", base)]
    points += [outcomes("static, greedy", found) for found in
               zip(*score(prompts, [paths] * len(prompts)), strict=True)]  # fmt: skip
    own = outcomes("routed", routed)
    return comparison(own, best_mixture(points, own.passes))


def outcomes(name: str, scores: Sequence[Any]) -> Contender:
    each = np.array([metric(item) for item in scores])
    return Contender(name, each, mean(passes(item.decisions) for item in scores))


@torch.inference_mode()
def speed(model: Any, tokenizer: Any, prompts: Sequence[Prompt], tokens: int = 24) -> dict[str, float]:
    """CPU seconds of routed over base, one prompt at a time, in turns: of prompts, and of tokens behind them."""
    spent: dict[str, list[float]] = {"prefill": [0.0, 0.0], "decode": [0.0, 0.0]}
    made = []
    for prompt in prompts:
        ids = tokenizer(prompt.text, add_special_tokens=False, return_tensors="pt")
        for routed in (True, False):
            for name, count in (("prefill", 1), ("decode", tokens)):
                begun = time.process_time()
                if routed:
                    model.generate(**ids, do_sample=False, min_new_tokens=count, max_new_tokens=count)
                else:
                    with model.disable_adapter():
                        model.generate(**ids, do_sample=False, min_new_tokens=count, max_new_tokens=count)
                spent[name][not routed] += time.process_time() - begun
        with torch.no_grad():
            model(**ids)
        made.append(passes(last_decisions(model)[0].tolist()))
    for way in (0, 1):
        spent["decode"][way] -= spent["prefill"][way]
    return {name: ours / base for name, (ours, base) in spent.items()} | {
        "passes": mean(made) / len(last_decisions(model)[0])
    }


def tables(runs: list[dict[str, Any]]) -> str:
    parts = []
    for limit in MEAN_PASSES:
        name = f"at most {limit} passes"
        chosen = [{"seed": run["seed"], "reports": {name: run["reports"][name]}} for run in runs]
        parts += [f"## Tested kinds, {name}\n", markdown(chosen)]
        parts += [f"## Kinds that nothing was trained on, {name}\n"]
        parts += ["| seed | routed | passes | routed - static, greedy |", "|---|---|---|---|"]
        for run in runs:
            report = run["unseen"][name]
            routed = percent(report["routed"]["value"], report["routed"]["interval"])
            against = percent(report["static"]["difference"], report["static"]["difference_interval"], "+")
            parts.append(f"| {run['seed']} | {routed} | {report['mean_passes']:.2f} | {against} |")
        if len(runs) > 1:
            parts.append(f"| all | | | {pooled([run['unseen'][name]['static'] for run in runs])} |")
        parts.append("")
    name = f"--max-loss {MAX_LOSS:g}"
    for key, title in (("reports", "Tested kinds"), ("unseen", "Kinds that nothing was trained on")):
        parts += [f"## {title}, {name}\n", "| seed | loss, points | mean passes |", "|---|---|---|"]
        reports = [run[key][name] for run in runs]
        for run, report in zip(runs, reports, strict=True):
            loss = percent(-report["difference"], [-bound for bound in reversed(report["difference_interval"])])
            parts.append(f"| {run['seed']} | {loss} | {report['mean_passes']:.2f} of {report['num_blocks']} |")
        if len(runs) > 1:
            parts.append(f"| all, routed - base | {pooled(reports)} | {mean(r['mean_passes'] for r in reports):.2f} |")
        parts += by_task(reports)
        parts.append("")
    ratios = {name: mean(run["speed"][name] for run in runs) for name in runs[0]["speed"]}
    parts += [f"Routed over base, CPU seconds: {json.dumps({name: round(ratio, 3) for name, ratio in ratios.items()})}"]
    return "\n".join(parts) + "\n"


def draw_agreement(runs: list[dict[str, Any]], path: Path) -> None:
    """Agreement against passes, a point for each seed and setting: routed, and what it is held to."""
    with figure(path, 7, 4.2) as (axes,):
        tables = [run["reports"][f"at most {limit} passes"]["baselines"] for run in runs for limit in MEAN_PASSES]
        own = [table["routed"] for table in tables]
        for name, label, colour in (
            ("told the kind", "told the kind", ORANGE),
            ("static, any mixture", "any static mixture", GREEN),
            ("static, greedy", "best static path", GREY),
        ):
            rows = [row for table in tables for row in table["baselines"] if row["name"] == name]
            axes.scatter([row["passes"] for row in rows], [100 * row["value"] for row in rows],
                         color=colour, label=label, s=26)  # fmt: skip
        bounds = [[abs(100 * (row["value"] - row["interval"][side])) for row in own] for side in (0, 1)]
        axes.errorbar([row["passes"] for row in own], [100 * row["value"] for row in own], bounds,
                      fmt="o", color=BLUE, label="routed, 95 % interval", markersize=5, capsize=2)  # fmt: skip
        axes.scatter([30], [100], color="black", marker="s", s=30, label="base", zorder=3)
        axes.set_xlabel("mean block passes a prompt (base: 30)")
        axes.set_ylabel("tokens that agree with the base, %")
        axes.grid(color=PALE)
        axes.legend(frameon=False, loc="upper left")


if __name__ == "__main__":
    main()
