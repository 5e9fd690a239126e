"""Saving, resuming and summing up a search, with a scorer that is a table."""

import errno
import hashlib
import io
import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from drllm_adapter import DrLLMError
from drllm_adapter.jobs import Shards
from drllm_adapter.search import SearchConfig, Work, run_search
from drllm_adapter.supervision import Labels, read_rows, read_search_info
from drllm_adapter.supervision.rows import DATA
from drllm_adapter.tasks import Prompt, Question


@dataclass
class ToyScore:
    probability: float
    correct: bool
    agreement: float | None = None
    kl: float | None = None


class ToyScorer:
    """Scores that only depend on the prompt and the path; counts its calls."""

    num_blocks = 5
    work = Work()

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.scored: list[tuple[str, tuple[int, ...]]] = []

    def begin(self, prompts: Sequence[Prompt]) -> "ToySession":
        return ToySession(self, prompts)

    def score(self, prompts: Sequence[Prompt], decisions: Sequence[tuple[int, ...]]) -> list[ToyScore]:
        time.sleep(self.delay)
        scores = []
        for prompt, path in zip(prompts, decisions, strict=True):
            self.scored.append((prompt.text, path))
            digest = hashlib.sha256(f"{prompt.text}{path}".encode()).digest()
            scores.append(ToyScore(digest[0] / 255, digest[1] < 100))
        return scores


@dataclass
class ToySession:
    scorer: ToyScorer
    prompts: Sequence[Prompt]

    def score(self, places: Sequence[int], paths: Sequence[tuple[int, ...]]) -> list[ToyScore]:
        return self.scorer.score([self.prompts[place] for place in places], paths)


def questions(count: int) -> tuple[list[Question], list[Prompt]]:
    asked = [Question(f"q{n}", "jsonl", f"question {n}", ("a", "b"), n % 2) for n in range(count)]
    return asked, [Prompt("x" * (n * 7 % 5) + str(n), False, (" a", " b"), n % 2, "cloze", 4) for n in range(count)]


def search(output: Path, scorer: Any = None, count: int = 10, **options: Any) -> Any:
    options = {"config": SearchConfig(simulations=12), "bundle": 3, "base_model": "toy", **options}
    return run_search(*questions(count), scorer or ToyScorer(), output=output, **options)


def data(folder: Path) -> bytes:
    return (folder / DATA).read_bytes()


def test_rows_hold_what_was_tried(tmp_path: Path) -> None:
    scorer = ToyScorer()
    search(tmp_path / "set", scorer)
    rows = read_rows(tmp_path / "set")
    assert [row.id for row in rows] == [f"q{n}" for n in range(10)]
    for row, prompt in zip(rows, questions(10)[1], strict=True):
        tried = [path for text, path in scorer.scored if text == prompt.text]
        assert [path.decisions for path in row.paths] == tried
        assert row.paths[0].decisions == (1,) * 5
        assert row.base_correct == row.paths[0].correct
        worth = {path.decisions: path.probability - 0.4 * sum(path.decisions) / 5 for path in row.paths}
        assert worth[row.decisions] == max(worth.values())
        assert (row.answer, row.base_model, row.score) == (("a", "b")[int(row.id[1:]) % 2], "toy", "choices")
    assert read_search_info(tmp_path / "set")["search"]["simulations"] == 12


def test_plain_datasets_reads_it(tmp_path: Path) -> None:
    import datasets

    search(tmp_path / "set")
    loaded = datasets.load_dataset(str(tmp_path / "set"), split="train")
    assert loaded["id"][:2] == ["q0", "q1"]
    assert str(loaded.features["decisions"].feature.dtype) == "int8"
    assert loaded.filter(lambda row: row["base_correct"]).num_rows == sum(loaded["base_correct"])


@pytest.mark.parametrize("rule", ["shortest", "price"])
def test_the_summary_by_hand(tmp_path: Path, rule: str) -> None:
    summary = search(tmp_path / "set", count=40, labels=Labels(rule), config=SearchConfig(simulations=2))
    rows = read_rows(tmp_path / "set")
    kept = [row for row in rows if row.decisions is not None]
    right = {row.id for row in kept if {path.decisions: path.correct for path in row.paths}[row.decisions]}
    base_wrong = {row.id for row in rows if not row.base_correct}
    base_right = {row.id for row in rows} - base_wrong
    # Only the paper's rule drops questions, and only the other one has labels that are wrong.
    assert (0 < len(kept) < 40) == (rule == "shortest")
    assert (0 < len(right) < len(kept)) == (rule == "price")
    assert summary.questions == 40
    assert summary.kept == len(kept)
    assert summary.label_accuracy == pytest.approx(len(right) / len(kept))
    assert summary.base_accuracy == pytest.approx(len(base_right) / 40)
    assert summary.fixed == pytest.approx(len(right & base_wrong) / len(base_wrong))
    assert summary.broken == pytest.approx(len(base_right - right) / len(base_right))
    assert summary.mean_passes == pytest.approx(sum(sum(row.decisions) for row in kept) / len(kept))
    assert sum(summary.decisions.values()) == 5 * len(kept)
    assert summary.paths == sum(len(row.paths) for row in rows)


@pytest.mark.parametrize("bundle", [3, 100])
def test_an_interrupted_search_goes_on_where_it_was(tmp_path: Path, bundle: int) -> None:
    whole, scorer = tmp_path / "whole", ToyScorer()
    search(whole, scorer)

    class Dies(ToyScorer):
        def score(self, *arguments: Any) -> list[ToyScore]:
            if len(self.scored) > 40:
                raise KeyboardInterrupt
            return super().score(*arguments)

    dies = Dies()
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "cut", dies, bundle=bundle)
    with pytest.raises(DrLLMError, match="--resume"):
        read_rows(tmp_path / "cut")
    rest = ToyScorer()
    search(tmp_path / "cut", rest, resume=True, bundle=bundle)
    assert data(tmp_path / "cut") == data(whole)
    # No path is scored twice, however large the bundle.
    assert sorted(dies.scored + rest.scored) == sorted(scorer.scored)
    assert len(dies.scored) > 40
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == sorted(path.name for path in whole.iterdir())
    done = ToyScorer()
    search(tmp_path / "cut", done, resume=True, bundle=bundle)
    assert not done.scored
    assert data(tmp_path / "cut") == data(whole)


@pytest.mark.parametrize("damage", [lambda line: line[:-9], lambda line: line.replace(b"true", b"false", 1)])
def test_a_damaged_journal_counts_up_to_the_damage(tmp_path: Path, damage: Any) -> None:
    whole, cut = ToyScorer(), tmp_path / "cut"
    search(tmp_path / "whole", whole, bundle=100)

    class Dies(ToyScorer):
        def score(self, *arguments: Any) -> list[ToyScore]:
            if len(self.scored) > 40:
                raise KeyboardInterrupt
            return super().score(*arguments)

    with pytest.raises(KeyboardInterrupt):
        search(cut, Dies(), bundle=100)
    (journal,) = (cut / "in_flight").iterdir()
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:2], damage(lines[2]), *lines[3:]]))
    rest = ToyScorer()
    search(cut, rest, resume=True, bundle=100)
    assert data(cut) == data(tmp_path / "whole")
    assert len(rest.scored) == len(whole.scored) - 20  # two rounds of ten questions are whole


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"config": SearchConfig(simulations=13)}, r"simulations \d+, but 13 was given"),
        ({"labels": Labels("shortest")}, "rule"),
        ({"labels": Labels(price=0.3)}, "price"),
        ({"count": 11}, "questions 10"),
        ({"base_fingerprint": "other"}, "base_fingerprint"),
        ({"bundle": 4}, "bundle"),
    ],
)
def test_going_on_with_another_search_is_refused(changed: dict[str, Any], named: str, tmp_path: Path) -> None:
    search(tmp_path / "set")
    before = data(tmp_path / "set")
    with pytest.raises(DrLLMError, match=f"with {named}"):
        search(tmp_path / "set", resume=True, **changed)
    assert data(tmp_path / "set") == before


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DrLLMError, match="something else"):
        search(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(DrLLMError, match="supervision set"):
        read_rows(tmp_path)


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, writes = os.replace, []

    def full_after_three(source: Any, target: Any) -> None:
        writes.append(target)
        if len(writes) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full_after_three)
    with pytest.raises(DrLLMError, match="No space left on device"):
        search(tmp_path / "set")
    monkeypatch.setattr(os, "replace", real)
    left = [path for path in (tmp_path / "set").rglob("*") if path.is_file()]
    # The shard of one bundle, and the journal of the one that could not be written.
    assert sorted(path.name.split(".")[0] for path in left) == ["000001", "000002", "drllm", "search"]
    search(tmp_path / "set", resume=True)
    search(tmp_path / "whole")
    assert data(tmp_path / "set") == data(tmp_path / "whole")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    search(tmp_path / "set")
    path = tmp_path / "set" / DATA
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DrLLMError, match="train-00000"):
        read_rows(tmp_path / "set")
    (tmp_path / "set" / "search.json").write_text("{")
    with pytest.raises(DrLLMError, match=r"search\.json"):
        read_search_info(tmp_path / "set")


def interrupted(folder: Path) -> Path:
    """A search that was interrupted after its second bundle; gives the folder of its shards."""

    class Stops(ToyScorer):
        def begin(self, prompts: Sequence[Prompt]) -> Any:
            if len(list(folder.glob("shards/*.parquet"))) == 2:
                raise KeyboardInterrupt
            return super().begin(prompts)

    with pytest.raises(KeyboardInterrupt):
        search(folder, Stops())
    return folder / "shards"


def test_a_question_that_changed_is_refused(tmp_path: Path) -> None:
    interrupted(tmp_path / "set")
    asked, prompts = questions(10)
    prompts[4] = Prompt("edited", False, (" a", " b"), 0, "cloze", 4)
    with pytest.raises(DrLLMError, match="edited data file"):
        run_search(asked, prompts, ToyScorer(), SearchConfig(simulations=12), tmp_path / "set", bundle=3,
                   base_model="toy", resume=True)  # fmt: skip


@pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda content: b"x" + content[1:], lambda _: b""])
def test_a_damaged_shard_is_named_set_aside_and_searched_again(tmp_path: Path, damage: Any) -> None:
    search(tmp_path / "whole")
    shard = sorted(interrupted(tmp_path / "set").iterdir())[0]
    shard.write_bytes(damage(shard.read_bytes()))
    log, rest = io.StringIO(), ToyScorer()
    search(tmp_path / "set", rest, resume=True, log=log)
    warning = next(line for line in map(json.loads, log.getvalue().splitlines()) if line["event"] == "warning")
    assert warning["shard"] == shard.name
    assert (tmp_path / "set" / "damaged" / f"{shard.name}.damaged").exists()
    # The damaged bundle and the two that were missing.
    assert {text for text, _ in rest.scored} < {prompt.text for prompt in questions(10)[1]}
    assert data(tmp_path / "set") == data(tmp_path / "whole")


def test_a_shard_damaged_while_the_search_runs_is_searched_again(tmp_path: Path) -> None:
    search(tmp_path / "whole")

    class Damages(ToyScorer):
        """Damages the first shard when the last bundle is searched."""

        def begin(self, prompts: Sequence[Prompt]) -> Any:
            shards = sorted((tmp_path / "set" / "shards").glob("*"))
            if len(shards) == 3 and not (tmp_path / "set" / "damaged").exists():
                shards[0].write_bytes(b"")
            return super().begin(prompts)

    search(tmp_path / "set", Damages())
    assert data(tmp_path / "set") == data(tmp_path / "whole")
    assert len(list((tmp_path / "set" / "damaged").iterdir())) == 1


def test_a_disk_that_damages_what_is_written_again_ends_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Shards.write

    def damaging(self: Shards, number: int, content: bytes) -> Path:
        path = write(self, number, content)
        path.write_bytes(b"")
        return path

    with monkeypatch.context() as patch:
        patch.setattr(Shards, "write", damaging)
        with pytest.raises(DrLLMError, match="check the disk"):
            search(tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "damaged")
    search(tmp_path / "set", resume=True)
    search(tmp_path / "whole")
    assert data(tmp_path / "set") == data(tmp_path / "whole")


def test_chapters_keep_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search(tmp_path / "whole")
    whole = read_rows(tmp_path / "whole")
    monkeypatch.setattr("drllm_adapter.search.runner.CHAPTER", 4)
    search(tmp_path / "set")
    assert read_rows(tmp_path / "set") == whole


def test_paths_without_finite_numbers_are_counted(tmp_path: Path) -> None:
    class Breaks(ToyScorer):
        def score(self, prompts: Sequence[Prompt], decisions: Sequence[tuple[int, ...]]) -> list[ToyScore]:
            scores = super().score(prompts, decisions)
            return [
                ToyScore(math.nan, False) if 0 in path else score for path, score in zip(decisions, scores, strict=True)
            ]

    summary = search(tmp_path / "set", Breaks())
    rows = read_rows(tmp_path / "set")
    broken = sum(0 in path.decisions for row in rows for path in row.paths)
    assert summary.paths_not_finite == broken > 0
    assert all(0 not in row.decisions for row in rows)


def test_progress_is_right_after_a_resume(tmp_path: Path) -> None:
    interrupted(tmp_path / "set")
    log = io.StringIO()
    summary = search(tmp_path / "set", ToyScorer(delay=0.02), resume=True, log=log)
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    progress = [line for line in lines if line["event"] == "progress"]
    assert [lines[0]["event"], lines[-1]["event"]] == ["start", "end"]
    # The two bundles of three of the earlier run are done and have no speed.
    assert (progress[0]["done"], progress[0]["per_hour"]) == (6, None)
    assert (progress[-1]["done"], progress[-1]["total"], progress[-1]["seconds_left"]) == (10, 10, 0)
    assert progress[-1]["fixed"] == pytest.approx(summary.fixed)
    elapsed = summary.seconds / 3600
    assert progress[-1]["per_hour"] == pytest.approx(4 / elapsed, rel=0.3)


def test_the_summary_is_kept(tmp_path: Path) -> None:
    first = search(tmp_path / "set")
    assert search(tmp_path / "set", resume=True) == first
    (tmp_path / "set" / "summary.json").unlink()
    again = search(tmp_path / "set", resume=True)
    assert (again.fixed, again.decisions, again.paths) == (first.fixed, first.decisions, first.paths)
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [
        "data", "drllm.json", "search.json", "summary.json",
    ]  # fmt: skip


def test_questions_that_cannot_be_searched(tmp_path: Path) -> None:
    with pytest.raises(DrLLMError, match="at least one question"):
        search(tmp_path / "set", count=0)
    asked, prompts = questions(3)
    with pytest.raises(DrLLMError, match="'q1' occurs 2 times"):
        run_search([*asked, asked[1]], [*prompts, prompts[1]], ToyScorer(), SearchConfig(), tmp_path / "set")
    assert not (tmp_path / "set").exists()
