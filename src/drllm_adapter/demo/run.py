"""`drllm demo`: the whole loop on the embedded model, through the same functions as the commands.

Search paths, train routers on them, evaluate on fresh questions, compare with static paths of the same number of
passes, save, load again with PEFT's own call, generate.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..decisions import Decisions, draw
from ..errors import DrLLMError
from ..evaluation import Report, best_static_at, plot_layers, score_static_paths, static_paths
from ..files import claim_folder, write_json_atomic
from ..generation import generate_text
from ..loading import load_base, load_routed, route_base
from ..scoring import Scorer
from ..search import SearchConfig
from ..tasks import Question, build_prompt, load_questions
from ..training import TrainingConfig
from ..workflow import Labels, evaluate_adapter, search_paths, train_adapter
from . import BASE

KIND = "demo"
# A higher price than the default: this base is worth more passes on the hardest questions than they cost at 0.4.
LABELS = Labels("weighted", price=0.8)
_CANDIDATES, _FINALISTS = 60, 6
_SELECTION_QUESTIONS = 128


def run_demo(
    output: str | Path,
    *,
    seed: int = 0,
    questions: int = 500,
    test_questions: int = 500,
    simulations: int = 80,
    console: Console,
) -> dict[str, Any]:
    """Run the loop and leave `report.json`, `layers.png`, `adapter/` and what led to them in `output`.

    Returns:
        What `report.json` holds.

    Raises:
        DrLLMError: `output` holds something already, or cannot be written.
    """
    started = time.perf_counter()
    folder = claim_folder(output, KIND)
    base = str(BASE)
    # Different seeds draw different questions; those of the evaluation were never searched or trained on.
    to_search = load_questions("khop", limit=questions, seed=2 * seed)
    to_test = load_questions("khop", limit=test_questions, seed=2 * seed + 1)

    console.rule("search")
    labels = LABELS
    config = SearchConfig.for_rule(labels.rule, simulations=simulations, seed=seed)
    searched = search_paths(
        base, to_search, folder / "paths", mode="cloze", config=config, labels=labels, console=console
    )
    console.print(searched.table())

    console.rule("train")
    training = TrainingConfig(seed=seed)
    train_adapter(folder / "paths", folder / "adapter", config=training, console=console)

    console.rule("evaluate")
    # Inside the adapter's folder, so that its card shows the results.
    report = evaluate_adapter(
        str(folder / "adapter"), to_test, folder / "adapter" / "evaluation", mode="cloze", console=console
    )
    console.print(report.table())
    static = _static_baseline(base, to_search, to_test, report.mean_passes, seed)
    console.print(
        f"best static path at the same {report.mean_passes:.2f} passes: {100 * static['accuracy']:.1f} %, "
        f"routed: {100 * report.routed.value:.1f} %",
        highlight=False,
    )

    console.rule("load again and generate")
    shown = _generate(folder / "adapter", to_test)
    for item in shown:
        console.print(
            f"{item['level']} hops: {item['prompt']} {item['text']} ({'right' if item['correct'] else 'wrong'})\n"
            f"        path {item['path']}",
            highlight=False,
        )

    result = {
        "seed": seed,
        "questions": {"searched": questions, "tested": test_questions},
        "seconds": time.perf_counter() - started,
        "evaluation": report.to_json(),
        "static": static,
        "generated": shown,
        "required": _requirements(report, static),
    }
    write_json_atomic(folder / "report.json", result)
    plot_layers(report, folder / "layers.png")
    console.print(
        f"{result['seconds']:.0f} s. In {folder}: report.json, layers.png, adapter/, paths/. Try: drllm generate "
        f'{folder}/adapter "{shown[0]["prompt"]}" --show-path',
        highlight=False,
        soft_wrap=True,
    )
    return result


def _static_baseline(
    base: str, to_search: Sequence[Question], to_test: Sequence[Question], mean_passes: float, seed: int
) -> dict[str, Any]:
    """The best static paths of as many passes, chosen on searched questions and scored on the tested ones."""
    model, tokenizer = load_base(base)
    scorer = Scorer(route_base(model), tokenizer, batch_size=64)
    selection = [build_prompt(question, "cloze", tokenizer) for question in to_search[:_SELECTION_QUESTIONS]]
    tested = [build_prompt(question, "cloze", tokenizer) for question in to_test]
    best, paths = {}, []
    for passes in sorted({math.floor(mean_passes), math.ceil(mean_passes)}):
        candidates = static_paths(scorer.num_blocks, passes, _CANDIDATES, seed)
        found = score_static_paths(candidates, len(selection), lambda along: scorer.score(selection, along))
        found.sort(key=lambda item: -item.accuracy.right)
        finalists: list[Decisions] = [item.decisions for item in found[:_FINALISTS]]
        final = score_static_paths(finalists, len(tested), lambda along: scorer.score(tested, along))
        # The best on the tested questions themselves: in favour of the baseline.
        winner = max(final, key=lambda item: item.accuracy.right)
        best[passes] = winner.accuracy.value
        paths.append(
            {
                "passes": passes,
                "tried": len(candidates),
                "decisions": list(winner.decisions),
                "accuracy": winner.accuracy.to_json(),
            }
        )
    return {"mean_passes": mean_passes, "accuracy": best_static_at(mean_passes, best), "paths": paths}


def _generate(adapter: Path, questions: Sequence[Question]) -> list[dict[str, Any]]:
    """One answer for the easiest, a middling and the hardest level, by the adapter as loaded from its folder."""
    model, tokenizer = load_routed(str(adapter))
    levels = sorted({question.level for question in questions if question.level is not None})
    shown = []
    for level in dict.fromkeys((levels[0], levels[len(levels) // 2], levels[-1])):
        question = next(question for question in questions if question.level == level)
        if question.choices is None or not isinstance(question.answer, int):
            raise DrLLMError(f"a question of the demo must have choices, but {question.id!r} has none; report this.")
        answer = generate_text(model, tokenizer, question.question, max_new_tokens=1)
        shown.append(
            {
                "level": level,
                "prompt": question.question,
                "text": answer.text.strip(),
                "correct": answer.text.strip() == question.choices[question.answer],
                "decisions": list(answer.decisions),
                "path": draw(answer.decisions),
            }
        )
    return shown


def _requirements(report: Report, static: dict[str, Any]) -> dict[str, bool]:
    """What the demo is there to show; each is measured, not assumed."""
    return {
        "routed above base, interval of the paired difference above zero": report.difference_interval[0] > 0,
        "routed above the best static path at equal passes": report.routed.interval[0] > static["accuracy"],
        # Not against the hardest: some of these are given up, and so are the passes that they would need.
        "fewer passes on the easiest questions than on average": report.levels[0].mean_passes < report.mean_passes,
        "no more passes than the base": report.mean_passes <= report.num_blocks,
    }
