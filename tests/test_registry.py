"""Choices by name: this package's, a user's own class, what another installed package offers."""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from drllm_adapter import DrLLMError
from drllm_adapter.decisions import Decisions, ScoredPath
from drllm_adapter.registry import Registry
from drllm_adapter.search import SearchConfig
from drllm_adapter.supervision import LABEL_RULES, LabelRule, choose_label, choose_labels

PACKAGE = """
from drllm_adapter.supervision import LabelRule

class Longest(LabelRule):
    summary = "the longest path"
    search = {"max_skip": 1}
    def choose(self, paths, price):
        return max(path.decisions for path in paths)
"""
PATHS = [ScoredPath((1, 1), 0.4, True), ScoredPath((2, 1), 0.1, False), ScoredPath((0, 1), 0.3, True)]


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Path]:
    """A folder for `sys.path` with a package that offers two rules, one of which cannot be imported."""
    (tmp_path / "my_rules.py").write_text(PACKAGE)
    info = tmp_path / "my_rules-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-rules\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[drllm_adapter.label_rules]\nlongest = my_rules:Longest\ngone = no_such_package:Gone\n"
    )
    yield tmp_path
    sys.modules.pop("my_rules", None)


def test_a_rule_of_another_package(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(installed)
    rules: Registry[LabelRule] = Registry("label rule", "drllm_adapter.label_rules")
    rules._classes.update(LABEL_RULES._classes)
    assert {"price", "shortest", "longest", "gone"} <= set(rules)
    assert "my_rules" not in sys.modules, "listing the names loads nothing"
    assert rules["longest"]().choose(PATHS, 0.0) == (2, 1)
    assert "longest: the longest path" in rules.help()
    with pytest.raises(DrLLMError, match=r"no_such_package:Gone is not \(ModuleNotFoundError"):
        rules["gone"]


def test_the_commands_know_it(installed: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(installed)!r}); sys.argv = ['drllm', 'search', '--help']\n"
        "from drllm_adapter.cli import main\nmain()"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}
    )
    assert "longest" in run.stdout
    assert "the published rule" in run.stdout


def test_a_rule_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LABEL_RULES, "_classes", dict(LABEL_RULES._classes))

    @LABEL_RULES.register("last")
    class Last(LabelRule):
        summary = "the last path"
        search: ClassVar[Mapping[str, Any]] = {"max_skip": 1}

        def choose(self, paths: Sequence[ScoredPath], price: float) -> Decisions | None:
            return paths[-1].decisions if paths else None

    assert choose_label(PATHS, "last", 0.4) == (0, 1)
    assert choose_labels(PATHS, "last", 0.4) == [((0, 1), 1.0)]
    assert SearchConfig.for_rule("last", simulations=3) == SearchConfig(max_skip=1, simulations=3)
    with pytest.raises(DrLLMError, match="'price' is already Price"):
        LABEL_RULES.register("price")(Last)
    with pytest.raises(DrLLMError, match=r"must be one of weighted, .*, last, but 'first'"):
        choose_label(PATHS, "first", 0.4)
