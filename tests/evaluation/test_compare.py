"""The comparison of base and routed: intervals against published numbers and enumeration, and plain counting."""

import io
import json
import math
import random
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from drllm_adapter import DrLLMError
from drllm_adapter.evaluation import Share, compare, plot_layers
from drllm_adapter.evaluation.compare import mcnemar
from drllm_adapter.evaluation.intervals import paired_interval

BLOCKS = 4


@dataclass(frozen=True)
class Outcome:
    correct: bool
    probability: float
    decisions: tuple[int, ...]
    agreement: float | None = None
    kl: float | None = None


outcomes = st.builds(Outcome, st.booleans(), st.floats(0, 1, width=16), st.tuples(*[st.integers(0, 2)] * BLOCKS))
questions = st.lists(st.tuples(outcomes, outcomes, st.sampled_from([None, 1, 2, 5])), min_size=1, max_size=25)


def draw(
    count: int, seed: int = 0, levels: tuple[int | None, ...] = (1, 2, 3)
) -> list[tuple[Outcome, Outcome, int | None]]:
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        level = generator.choice(levels)
        path = tuple(generator.choice((0, 1, 1, 2)) for _ in range(BLOCKS))
        base = Outcome(generator.random() < 0.6, generator.random(), (1,) * BLOCKS)
        rows.append((base, Outcome(generator.random() < 0.8, generator.random(), path), level))
    return rows


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    # Newcombe (1998), Statistics in Medicine 17, 857-872, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_as_published(right: int, of: int, low: float, high: float) -> None:
    assert Share(right, of).interval == pytest.approx((low, high), abs=5e-5)


@given(of=st.integers(1, 5000), share=st.floats(0, 1))
def test_wilson_interval_solves_its_equation(of: int, share: float) -> None:
    item = Share(round(share * of), of)
    low, high = item.interval
    assert 0 <= low <= item.value <= high <= 1
    for bound in (low, high):
        # The shares that lie exactly 1.96 standard errors - the bound's own - from the observed one.
        if 1e-9 < bound < 1 - 1e-9:
            assert abs(item.value - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / of), rel=1e-6)


@given(count=st.integers(1, 400), data=st.data())
def test_paired_interval_equals_the_definition(count: int, data: st.DataObject) -> None:
    gained = data.draw(st.integers(0, count))
    lost = data.draw(st.integers(0, count - gained))
    # Half a question more in each of the four cells, then mean and standard error of the differences.
    differences = [(1, gained + 0.5), (-1, lost + 0.5), (0, count - gained - lost + 1.0)]
    total = sum(weight for _, weight in differences)
    mean = sum(value * weight for value, weight in differences) / total
    variance = sum((value - mean) ** 2 * weight for value, weight in differences) / total
    half = 1.959964 * math.sqrt(variance / total)
    expected = (max(-1, mean - half), min(1, mean + half))
    assert paired_interval(gained, lost, count) == pytest.approx(expected, abs=1e-9)
    low, high = paired_interval(lost, gained, count)
    assert (-high, -low) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("win", "lose"), [(0.15, 0.1), (0.05, 0.05), (0.3, 0.05), (0.02, 0.2)])
def test_paired_interval_covers_the_truth(win: float, lose: float) -> None:
    count, covered = 40, 0.0
    for gained in range(count + 1):
        for lost in range(count + 1 - gained):
            rest = count - gained - lost
            ways = math.comb(count, gained) * math.comb(count - gained, lost)
            low, high = paired_interval(gained, lost, count)
            covered += ways * win**gained * lose**lost * (1 - win - lose) ** rest * (low <= win - lose <= high)
    assert 0.93 < covered < 0.99


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (3, 3), (5, 1), (0, 9), (2, 8)])
def test_mcnemar_equals_counting_coin_tosses(gained: int, lost: int) -> None:
    tosses = gained + lost
    extreme = [row for row in product((0, 1), repeat=tosses) if abs(2 * sum(row) - tosses) >= abs(gained - lost)]
    assert mcnemar(gained, lost) == pytest.approx(len(extreme) / 2**tosses)


def test_mcnemar_of_many() -> None:
    assert mcnemar(3000, 2900) == pytest.approx(0.198, abs=0.002)  # normal: z = 99 / sqrt(5900)
    assert 0 <= mcnemar(5000, 0) < 1e-300


@given(rows=questions)
def test_report_equals_counting(rows: list[tuple[Outcome, Outcome, int | None]]) -> None:
    base, routed, levels = (list(column) for column in zip(*rows, strict=True))
    report = compare(base, routed, levels)
    count = len(rows)
    assert (report.base.right, report.base.of) == (sum(item.correct for item in base), count)
    assert (report.routed.right, report.routed.of) == (sum(item.correct for item in routed), count)
    assert report.difference == pytest.approx(report.routed.value - report.base.value)
    assert report.difference == pytest.approx((report.gained - report.lost) / count)
    assert report.base_probability == pytest.approx(sum(item.probability for item in base) / count)
    assert report.routed_probability == pytest.approx(sum(item.probability for item in routed) / count)
    assert sum(report.passes.values()) == count
    assert list(report.passes) == sorted(report.passes)
    assert sum(number * times for number, times in report.passes.items()) / count == pytest.approx(report.mean_passes)
    assert [sum(row) for row in report.decisions] == [count] * BLOCKS
    assert sum(row[1] + 2 * row[2] for row in report.decisions) / count == pytest.approx(report.mean_passes)
    if any(level is not None for level in levels):
        assert [item.name for item in report.levels] == sorted(set(levels), key=lambda level: (level is None, level))
        assert sum(item.base.of for item in report.levels) == count
        assert sum(item.base.right for item in report.levels) == report.base.right
        assert sum(item.routed.right for item in report.levels) == report.routed.right
        assert sum(item.mean_passes * item.base.of for item in report.levels) / count == pytest.approx(
            report.mean_passes
        )
    else:
        assert report.levels == []


@given(rows=questions, data=st.data())
def test_the_order_of_questions_does_not_matter(
    rows: list[tuple[Outcome, Outcome, int | None]], data: st.DataObject
) -> None:
    def flat(rows: list[tuple[Outcome, Outcome, int | None]]) -> list[object]:
        found: list[object] = []

        def walk(value: object) -> None:
            if isinstance(value, dict):
                found.extend(value)
                value = list(value.values())
            if isinstance(value, list):
                for item in value:
                    walk(item)
            else:
                # Sums of probabilities round differently in another order.
                found.append(round(value, 9) if isinstance(value, float) else value)

        base, routed, levels = (list(column) for column in zip(*rows, strict=True))
        walk(compare(base, routed, levels).to_json())
        return found

    assert flat(data.draw(st.permutations(rows))) == flat(rows)


def test_one_level_is_the_report_on_its_questions() -> None:
    rows = draw(90)
    base, routed, levels = (list(column) for column in zip(*rows, strict=True))
    of_second = [row for row in rows if row[2] == 2]
    alone = compare([row[0] for row in of_second], [row[1] for row in of_second], [None] * len(of_second))
    level = compare(base, routed, levels).levels[1]
    assert (level.base, level.routed) == (alone.base, alone.routed)
    assert level.mean_passes == pytest.approx(alone.mean_passes)


def test_one_task_is_the_report_on_its_questions() -> None:
    base, routed, levels = (list(column) for column in zip(*draw(90), strict=True))
    tasks = ["arc" if place % 3 else "gsm8k" for place in range(90)]
    report = compare(base, routed, levels, tasks)
    assert [part.name for part in report.tasks] == ["arc", "gsm8k"]
    alone = compare(base[::3], routed[::3], levels[::3])
    assert (report.tasks[1].base, report.tasks[1].routed) == (alone.base, alone.routed)
    assert report.tasks[1].mean_passes == pytest.approx(alone.mean_passes)
    assert report.to_json()["tasks"][1]["task"] == "gsm8k"
    assert compare(base, routed, levels, ["arc"] * 90).tasks == []


def test_identical_models_differ_by_nothing() -> None:
    base = [row[0] for row in draw(50)]
    report = compare(base, base, [None] * 50)
    assert (report.difference, report.gained, report.lost, report.p_value) == (0, 0, 0, 1)
    low, high = report.difference_interval
    assert low == -high < 0
    assert report.passes == {BLOCKS: 50}
    assert report.mean_passes == report.num_blocks


@pytest.mark.parametrize("levels", [(None,), (1, 2), (None, 3)])
def test_json_and_table(levels: tuple[int | None, ...]) -> None:
    base, routed, given_levels = (list(column) for column in zip(*draw(60, levels=levels), strict=True))
    report = compare(base, routed, given_levels)
    plain = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert plain["base"]["right"] == report.base.right
    assert plain["base"]["interval"] == pytest.approx(list(report.base.interval))
    assert plain["passes"] == {str(number): count for number, count in report.passes.items()}
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.table())
    text = console.export_text()
    assert f"{100 * report.routed.value:.1f} [" in text
    assert ("no level" in text) == (levels == (None, 3))
    assert "None" not in text


@pytest.mark.parametrize("levels", [(None,), (1, 2, 3), (None, 3)])
def test_figure_is_a_picture(tmp_path: Path, levels: tuple[int | None, ...]) -> None:
    from matplotlib import image

    base, routed, given_levels = (list(column) for column in zip(*draw(40, levels=levels), strict=True))
    plot_layers(compare(base, routed, given_levels), tmp_path / "layers.png")
    picture = image.imread(tmp_path / "layers.png")
    assert picture.shape[0] > 400
    assert picture.std() > 0.05  # not a blank sheet
    assert [path.name for path in tmp_path.iterdir()] == ["layers.png"]


@pytest.mark.parametrize("right", [True, False])
def test_figure_of_extreme_shares(tmp_path: Path, right: bool) -> None:
    for count in (1, 3, 7, 20, 30):
        scores = [Outcome(right, float(right), (1,) * BLOCKS)] * count
        plot_layers(compare(scores, scores, [1] * count), tmp_path / "layers.png")


def test_figure_in_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    scores = [Outcome(True, 1.0, (1,) * BLOCKS)]
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DrLLMError, match="could not be written"):
        plot_layers(compare(scores, scores, [None]), tmp_path / "layers.png")
    assert not list(tmp_path.iterdir())


def test_agreement_by_kind_with_bootstrapped_intervals() -> None:
    paths = [(1, 1, 1, 1), (1, 0, 1, 1)]
    base = [Outcome(True, 0.5, paths[0], agreement=1.0, kl=0.0) for _ in range(40)]
    routed = [Outcome(n % 2 == 0, 0.4, paths[n % 2], agreement=1 - 0.25 * (n % 2), kl=0.1 * (n % 2)) for n in range(40)]
    report = compare(base, routed, [None] * 40, ["json", "story"] * 20)
    assert (report.base.value, report.base.interval, report.routed.value) == (1, (1, 1), 0.875)
    assert (report.gained, report.lost, report.p_value, report.difference) == (0, 20, None, -0.125)
    # The standard error of 40 draws of 0 or -0.25 is 0.125 / sqrt(40) = 0.0198.
    low, high = report.difference_interval
    assert (low, high) == pytest.approx((-0.125 - 1.96 * 0.0198, -0.125 + 1.96 * 0.0198), abs=0.008)
    assert report.kl is not None
    assert report.kl[0] == pytest.approx(0.05)
    assert report.kl[1] < 0.05 < report.kl[2]
    assert [(part.name, part.routed.value, part.mean_passes) for part in report.tasks] == [
        ("json", 1, 4), ("story", 0.75, 3),
    ]  # fmt: skip
    plain = json.loads(json.dumps(report.to_json()))
    assert plain["metric"] == "agreement"
    assert [part["kl"][0] for part in plain["tasks"]] == [0, pytest.approx(0.1)]
    printed = io.StringIO()
    Console(file=printed, width=100).print(report.table())
    assert "87.5 [8" in printed.getvalue()
    assert "3.50 (base: 4)" in printed.getvalue()
