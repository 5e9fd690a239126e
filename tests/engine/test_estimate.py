"""What --estimate says against what a search then costs."""

import json
import sys
from pathlib import Path

import pytest
from test_scoring import ROUTED, TOKENIZER
from test_sharing_scorer import CLOZE

from drllm_adapter.cli import main
from drllm_adapter.demo import BASE
from drllm_adapter.engine import SharingScorer
from drllm_adapter.search import SearchConfig, estimate_search, search_bundle
from drllm_adapter.tasks import Prompt


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
