"""An adapter and a supervision set in `older/`, as the package wrote them on 25 November 2026, are what they were."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from unrolled import tiny_model

from drllm_adapter import last_decisions
from drllm_adapter.adapter.integrity import check_adapter_folder
from drllm_adapter.decisions import ScoredPath
from drllm_adapter.hub.cards import write_card
from drllm_adapter.supervision import Labels, choose_label, read_rows, read_search_info
from drllm_adapter.supervision.examples import read_examples

OLDER = Path(__file__).parent / "older"


def test_an_older_adapter_decides_as_it_did(recwarn: pytest.WarningsRecorder) -> None:
    model = PeftModel.from_pretrained(tiny_model("llama", 3), OLDER / "adapter").eval()
    with torch.no_grad():
        model(torch.arange(1, 25).reshape(4, 6))
    assert last_decisions(model).tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 0], [1, 1, 1]]
    config = check_adapter_folder(OLDER / "adapter")
    assert (config.num_windows, config.router_width, config.layers_to_transform) == (2, 4, [0, 2])
    assert (config.depth_control, config.layer_budget) == (-0.25, 4)
    assert not [str(said.message) for said in recwarn if "another state of its base" in str(said.message)]


@pytest.mark.parametrize("name", ["adapter", "paths"])
def test_an_older_card_is_renewed_in_its_place(name: str, tmp_path: Path) -> None:
    folder = shutil.copytree(OLDER / name, tmp_path / name)
    before = (folder / "README.md").read_text(encoding="utf-8") + "\nMy own words.\n"
    (folder / "README.md").write_text(before, encoding="utf-8")
    card = write_card(folder).read_text(encoding="utf-8")
    assert "My own words." in card
    assert re.findall("<!-- drllm:([a-z]+)", card) == re.findall("<!-- drllm:([a-z]+)", before)


def test_an_older_supervision_set_is_read_and_labelled_as_it_was(tmp_path: Path) -> None:
    rows = read_rows(OLDER / "paths")
    assert [row.id for row in rows] == ["khop-0-0", "khop-0-1", "khop-0-2"]
    for row in rows:
        assert choose_label(row.paths, "weighted", 0.4) == row.decisions
        assert row.paths[0].decisions == (1,) * 8
        assert row.to_prompt().answer == row.answer_index
    assert rows[1].paths[6] == ScoredPath((1, 0, 0, 1, 1, 0, 0, 1), 0.1594399, True)
    _, paths, weights = read_examples(OLDER / "paths", Labels(), tmp_path)
    assert len(paths) == len(weights if weights is not None else ()) >= 3
    # What is known of the search, with the set's own notes and from the rows alone.
    for source in (OLDER / "paths", OLDER / "paths" / "data"):
        info = read_search_info(source)
        assert (info["base_model"], info["num_blocks"], info["rule"]) == ("/models/demo", 8, "weighted")
        assert info["search"]["simulations"] == 6
