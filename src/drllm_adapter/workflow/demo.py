"""`drllm demo`: the whole loop on the embedded model, through the same functions as the commands.

Search paths, train routers on them, refine them on policy, evaluate on fresh questions, compare with every baseline at
the same number of passes, save, load again with PEFT's own call, generate.
"""

import shlex
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from ..decisions import draw
from ..demo import BASE
from ..evaluation import BaselineTable, Part, Report, plot_layers, verdict
from ..files import claim_folder, write_json_atomic
from ..models.loading import load_routed
from ..search import SearchConfig
from ..supervision import Labels
from ..tasks import Question, load_questions
from ..training import RefineConfig, TrainingConfig
from .evaluate import evaluate_adapter
from .generate import generate_text
from .refine import refine_adapter
from .search import search_paths
from .train import train_adapter

KIND = "demo"
# Higher than the default: gives up some of the hardest questions for fewer passes on average.
LABELS = Labels("weighted", price=0.8)
REFINE_STEPS = 120


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
    train_adapter(folder / "paths", folder / "trained", config=training, console=console)

    console.rule("refine")
    # Questions cost nothing once no paths are searched for them: the searched ones, and as many again.
    refine_adapter(
        str(folder / "trained"),
        load_questions("khop", limit=2 * questions, seed=2 * seed),
        folder / "adapter",
        mode="cloze",
        config=RefineConfig(max_steps=REFINE_STEPS, price=labels.price, seed=seed),
        console=console,
    )

    console.rule("evaluate")
    # Inside the adapter's folder, so that its card shows the results.
    report = evaluate_adapter(
        str(folder / "adapter"),
        to_test,
        folder / "adapter" / "evaluation",
        mode="cloze",
        supervision=folder / "paths",
        console=console,
    )
    assert report.baselines is not None
    console.print(report.table())
    console.print(report.baselines.table())
    console.print(f"Verdict: {verdict(report)}", highlight=False)

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
        "generated": shown,
        "required": _requirements(report, report.baselines),
    }
    write_json_atomic(folder / "report.json", result)
    plot_layers(report, folder / "layers.png")
    adapter = shlex.quote(str(folder / "adapter"))
    page = f"drllm app {adapter}"
    if find_spec("gradio") is None:
        page = f"pip install 'drllm-adapter[app]', then {page}"
    console.print(
        f"{result['seconds']:.0f} s. In {folder}: report.json, layers.png, adapter/, and what led to it, paths/ and "
        f"trained/. Try: drllm generate {adapter} {shlex.quote(shown[0]['prompt'])} --show-path\n"
        f"Or see it in a browser: {page}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return result


def _generate(adapter: Path, questions: Sequence[Question]) -> list[dict[str, Any]]:
    """One answer for the easiest, a middling and the hardest level, by the adapter as loaded from its folder."""
    model, tokenizer = load_routed(str(adapter))
    levels = sorted({question.level for question in questions if question.level is not None})
    shown = []
    for level in dict.fromkeys((levels[0], levels[len(levels) // 2], levels[-1])):
        question = next(question for question in questions if question.level == level)
        assert question.choices is not None
        assert isinstance(question.answer, int)
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


def _requirements(report: Report, baselines: BaselineTable) -> dict[str, bool]:
    """What the demo is there to show; each is measured, not assumed."""
    # Halves, not the two ends: some of the hardest questions are given up, and so are the passes that they would need.
    half = len(report.levels) // 2
    return {
        "routed above base, interval of the paired difference above zero": report.difference_interval[0] > 0,
        "routed above every baseline at equal passes, intervals of the paired differences above zero": all(
            row["difference_interval"][0] > 0 for row in baselines.rows
        ),
        "fewer passes on the easier half of the levels than on the harder half": (
            _mean_passes(report.levels[:half]) < _mean_passes(report.levels[-half:])
        ),
        "no more passes than the base": report.mean_passes <= report.num_blocks,
    }


def _mean_passes(levels: Sequence[Part]) -> float:
    """Over the questions of these levels."""
    return sum(level.mean_passes * level.base.of for level in levels) / sum(level.base.of for level in levels)
