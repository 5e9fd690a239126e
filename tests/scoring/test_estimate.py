"""What --estimate says against what a search then costs."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_scoring import ROUTED, TOKENIZER
from test_sharing_scorer import CLOZE

from drllm_adapter.cli import main
from drllm_adapter.demo import BASE
from drllm_adapter.scoring.shared_prefix import SharingScorer
from drllm_adapter.search import SearchConfig, Work, estimate, estimate_search, search_bundle
from drllm_adapter.tasks import Prompt


class Counted:
    """A scorer of known cost: a whole base path, and of another path 6 passes, all but a few of them shared.

    Its clock stands still but while a block runs, longer for a longer prompt; the first call of all is slow.
    """

    num_blocks = 8

    def __init__(self) -> None:
        self.work, self.now, self.seconds_scoring = Work(), 0.0, 0.0
        self.began = False

    def perf_counter(self) -> float:
        return self.now

    def begin(self, prompts: Sequence[Prompt]) -> Any:
        return SimpleNamespace(
            score=lambda places, paths: [self.score(prompts[n], path) for n, path in zip(places, paths, strict=True)]
        )

    def score(self, prompt: Prompt, path: tuple[int, ...]) -> Any:
        is_base = path == (1,) * self.num_blocks
        passes = self.num_blocks if is_base else 6
        run = self.num_blocks if is_base else len(prompt.text)
        self.work += Work(paths=1, passes=passes, passes_run=run)
        seconds = 0.5 * len(prompt.text) * run
        self.now += seconds if self.began else 1000
        self.seconds_scoring += seconds
        self.began = True
        return SimpleNamespace(probability=float(is_base), correct=False, agreement=None, kl=None)


@pytest.mark.parametrize("simulations", [4, 10, 20])
def test_the_estimate_is_exact_where_all_questions_of_a_length_cost_the_same(
    simulations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 30 questions 24 are tried, with 10 simulations at most; the base's own path is scored once."""
    # Every other path is worse than the base's, so each simulation tries another child of the root.
    config = SearchConfig(simulations=simulations, exploration=0.0, length_penalty=0.0, random_child=0.0)
    prompts = [Prompt("x" * (1 + n % 3), False, (" a", " b"), 0, "cloze", 4) for n in range(30)]
    tried, whole = Counted(), Counted()
    monkeypatch.setattr(estimate, "time", tried)
    expected = estimate_search(prompts, tried, config)
    search_bundle([str(place) for place in range(30)], prompts, whole, config)
    assert whole.work.paths == 30 * (1 + simulations)
    assert (expected.questions, expected.tried) == (30, 24)
    assert (expected.paths, expected.passes, expected.passes_run) == (
        whole.work.paths,
        30 * (8 + 6 * simulations),
        30 * (8 + 2 * simulations),
    )
    assert expected.seconds == pytest.approx(whole.seconds_scoring)


@pytest.mark.parametrize("early_stop", [False, True])
def test_the_estimate_is_near_what_the_search_costs(early_stop: bool) -> None:
    config = SearchConfig(simulations=20, early_stop=early_stop)
    prompts = [
        Prompt(f"{p.text} w{n}", False, p.continuations, p.answer, "cloze", 4) for p in CLOZE for n in range(1, 9)
    ]
    expected = estimate_search(prompts, SharingScorer(ROUTED, TOKENIZER), config)
    scorer = SharingScorer(ROUTED, TOKENIZER)
    search_bundle([str(place) for place in range(len(prompts))], prompts, scorer, config)
    assert expected.questions == len(prompts)
    assert expected.tried == 24
    assert expected.paths == pytest.approx(scorer.work.paths, rel=0.25)
    assert expected.passes == pytest.approx(scorer.work.passes, rel=0.25)
    assert expected.passes_run == pytest.approx(scorer.work.passes_run, rel=0.25)
    assert expected.seconds > 0


def test_with_few_questions_all_are_tried() -> None:
    config = SearchConfig(simulations=5)
    expected = estimate_search(CLOZE[:2], SharingScorer(ROUTED, TOKENIZER), config)
    scorer = SharingScorer(ROUTED, TOKENIZER)
    for place, prompt in enumerate(CLOZE[:2]):
        search_bundle([str(place)], [prompt], scorer, config)
    assert (expected.questions, expected.tried, expected.paths) == (2, 2, scorer.work.paths)
    assert (expected.passes, expected.passes_run) == (scorer.work.passes, scorer.work.passes_run)


def test_the_command_writes_no_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = str(BASE)
    command = ["drllm", "search", base, "--task", "khop", "--limit", "40", "--mode", "cloze", "--simulations", "4"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [*command, "--estimate", "--json", "estimate.json"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "40 questions" in said
    assert "about" in said
    assert json.loads(Path("estimate.json").read_text())["questions"] == 40
    assert [path.name for path in tmp_path.iterdir()] == ["estimate.json"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "name it with --output" in capsys.readouterr().err
