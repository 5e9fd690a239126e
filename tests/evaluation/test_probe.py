"""The probe finds what was planted: shares of the variance, what states predict, and the gain that follows."""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drllm_adapter import DrLLMError
from drllm_adapter.cli import main
from drllm_adapter.demo import BASE
from drllm_adapter.evaluation.probe import Measurements, analyse, measure
from drllm_adapter.models.loading import load_base, route_base
from drllm_adapter.scoring.plain import Scorer
from drllm_adapter.scoring.shared_prefix import SharingScorer
from drllm_adapter.tasks import build_prompt, load_questions

QUESTIONS, PATHS = 400, 30


def planted(static: float, task: float, seen: float, unseen: float, *, tasks: int = 1, seed: int = 0) -> Measurements:
    """Probabilities 0.5 plus path effects of given variances (of 100): alike, by task, by the states, and by nothing.

    Of the 40 states only two say anything. Every question has a level of its own, which is no effect of a path.
    """
    random = np.random.default_rng(seed)

    def effect(rows: int, variance: float) -> np.ndarray:
        drawn = random.normal(size=(rows, PATHS))
        drawn -= drawn.mean(axis=1, keepdims=True)
        return 0.1 * np.sqrt(variance / 100) * drawn / np.sqrt((drawn**2).mean(axis=1, keepdims=True))

    group = np.arange(QUESTIONS) % tasks
    of_tasks = effect(tasks, 100 * (tasks > 1))
    of_tasks -= of_tasks.mean(axis=0)
    of_tasks *= np.sqrt(task / 100) * 0.1 / max(1e-9, np.sqrt((of_tasks**2).mean()))
    states = random.normal(size=(QUESTIONS, 40))
    by_states = states[:, :2] @ effect(2, 50.0) * np.sqrt(seen / 100)
    probability = 0.5 + random.normal(scale=0.1, size=(QUESTIONS, 1)) + effect(1, static) + of_tasks[group]
    probability = probability + by_states + np.sqrt(unseen / 100) * random.normal(scale=0.1, size=(QUESTIONS, PATHS))
    # The base executes ten blocks; the others' passes go from 5 to 15.
    paths = [(1,) * 10, *[(0,) * (number % 6) + (1,) * (10 - number % 6) for number in range(1, PATHS)]]
    none = np.full((QUESTIONS, 1), np.nan)
    return Measurements(
        [f"task{place}" for place in group], paths, probability, (probability > 0.5).astype(float), [(0, 0)],
        none, none, states,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("static", "seen", "unseen"), [(100, 0, 0), (60, 0, 40), (20, 70, 10), (0, 0, 100), (30, 35, 35)]
)
def test_one_task(static: float, seen: float, unseen: float) -> None:
    report = analyse(planted(static, 0, seen, unseen))
    assert report.task is report.by_task is report.gain_over_task is None
    assert report.static[0] == pytest.approx(static / 100, abs=0.04)
    assert report.question[0] == pytest.approx((seen + unseen) / 100, abs=0.04)
    assert report.static[1] - 0.01 <= static / 100 <= report.static[2] + 0.01
    if seen + unseen:
        assert report.by_prompt[0] == pytest.approx(seen / (seen + unseen), abs=0.05)
    assert report.verdict.startswith("much" if seen else "little")


def test_between_tasks() -> None:
    report = analyse(planted(30, 40, 0, 30, tasks=4))
    assert report.task is not None
    assert report.by_task is not None
    shares = (report.static[0], report.task[0], report.question[0])
    # Static and task effects are a few draws of paths; their sum is what is exact.
    assert shares[0] + shares[1] == pytest.approx(0.7, abs=0.04)
    assert shares[1] == pytest.approx(0.4 * 4 / 3, abs=0.1)  # four tasks: their mean is taken out of the effects
    assert report.by_task[0] == pytest.approx(40 / 70, abs=0.05)
    # States say nothing here, so the prompt must lose to the name of the task.
    assert report.by_prompt[0] == pytest.approx(0, abs=0.05)
    assert report.verdict.startswith("little")


def test_luck_is_not_credited() -> None:
    """A policy is credited with what its choice really gave on questions it was not fitted to."""

    def worths(measured: Measurements) -> list[float]:
        return [policy.worth for policy in analyse(measured, price=0.0).policies]

    base, static, predicted, hindsight = worths(planted(30, 0, 60, 10))
    assert base < static < predicted < hindsight
    # Nothing to predict: choosing in hindsight looks good all the same.
    _, static, predicted, hindsight = worths(planted(30, 0, 0, 70))
    assert hindsight > static + 0.05
    assert predicted == pytest.approx(static, abs=0.005)


def test_measuring_equals_scoring_one_at_a_time() -> None:
    model, tokenizer = load_base(str(BASE))
    prompts = [build_prompt(question, "cloze", tokenizer) for question in load_questions("khop", limit=24)]
    scorer = SharingScorer(route_base(model), tokenizer)
    measured = measure(scorer, prompts, ["khop"] * 24, paths=3, single_edits=4)
    alone = Scorer(scorer.plain.model, tokenizer, batch_size=1)
    for row, prompt in enumerate(prompts):
        scores = alone.score([prompt] * 4, measured.paths)
        assert measured.probability[row] == pytest.approx([score.probability for score in scores], abs=1e-4)
        assert measured.correct[row].tolist() == [float(score.correct) for score in scores]
        for place in np.flatnonzero(~np.isnan(measured.edit_probability[row])):
            block, decision = measured.edits[place]
            path = tuple(decision if other == block else 1 for other in range(8))
            score = alone.score([prompt], [path])[0]
            assert measured.edit_probability[row, place] == pytest.approx(score.probability, abs=1e-4)
    scored = Counter((~np.isnan(measured.edit_probability)).sum(axis=0).tolist())
    assert scored == {6: 16}  # 24 questions x 4 over 16 edits
    assert measured.states.shape == (24, 8 * 96)


def test_a_table_without_edits_says_why() -> None:
    report = replace(analyse(planted(30, 0, 60, 10)), effects=[])
    (said,) = report.tables()[0].columns[0].cells
    assert "--limit" in str(said)


def test_the_demo_model_has_much_to_gain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["drllm", "probe", str(BASE), "--task", "khop", "--limit", "80", "--paths", "16", "--single-edits", "4"]
    monkeypatch.setattr(sys, "argv", [*command, "--output", str(tmp_path / "probe")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    assert "Verdict: much to gain" in capsys.readouterr().out
    report = json.loads((tmp_path / "probe" / "report.json").read_text())
    assert report["by_prompt"][1] > 0.2
    assert report["gain"][1] > 0
    assert (tmp_path / "probe" / "probe.png").read_bytes().startswith(b"\x89PNG")


def test_too_few_questions_are_refused() -> None:
    model, tokenizer = load_base(str(BASE))
    prompts = [build_prompt(question, "cloze", tokenizer) for question in load_questions("khop", limit=5)]
    with pytest.raises(DrLLMError, match="at least 20 questions"):
        measure(SharingScorer(route_base(model), tokenizer), prompts, ["khop"] * 5)
