"""Cards say what the files say and nothing else, keep what people wrote, and work: their code runs, their front matter
is what huggingface_hub and datasets read."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import (
    DatasetCard,
    ModelCard,
    ModelCardData,
    metadata_eval_result,
    metadata_load,
    metadata_save,
    parse_eval_result_entries,
)

import drllm_adapter
from drllm_adapter import DrLLMError
from drllm_adapter.adapter.card_on_push import CardOnPush
from drllm_adapter.adapter.integrity import check_adapter_folder
from drllm_adapter.demo import BASE
from drllm_adapter.hub import TAGS, add_evaluation, write_card
from drllm_adapter.models.download import load_training_record
from drllm_adapter.search import SearchConfig
from drllm_adapter.supervision import read_rows
from drllm_adapter.supervision.rows import SCHEMA
from drllm_adapter.tasks import load_questions
from drllm_adapter.training import TrainingConfig
from drllm_adapter.workflow import Labels, evaluate_adapter, search_paths, train_adapter


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supervision set in `paths`, an adapter in `routers`, and an evaluation of it in `measured`."""
    folder = tmp_path_factory.mktemp("cards")
    search_paths(str(BASE), load_questions("khop", limit=30), folder / "paths", mode="cloze",
                 config=SearchConfig(simulations=20), labels=Labels("price", 0.4))  # fmt: skip
    train_adapter(folder / "paths", folder / "routers", config=TrainingConfig(epochs=2))
    evaluate_adapter(str(folder / "routers"), load_questions("khop", limit=40, seed=1), folder / "measured",
                     mode="cloze")  # fmt: skip
    return folder


@pytest.fixture
def made(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "made"))


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def on_the_hub(made: Path, base: str = "acme/tiny-llama") -> None:
    """As if the base had been loaded by its name on the Hub."""
    change_json(made / "routers" / "adapter_config.json", lambda config: config.update(base_model_name_or_path=base))
    (made / "routers" / "README.md").unlink()


def test_nothing_measured_nothing_claimed(made: Path) -> None:
    card = ModelCard.load(made / "routers" / "README.md")
    assert "Nothing has been measured yet." in card.text
    assert card.data.eval_results is None
    assert "model-index" not in card.data.to_dict()


def test_the_front_matter_of_an_adapter(made: Path) -> None:
    on_the_hub(made)
    data = ModelCard.load(write_card(made / "routers", license="apache-2.0")).data.to_dict()
    assert data["library_name"] == "peft"
    assert data["base_model"] == "acme/tiny-llama"
    assert data["base_model_relation"] == "adapter"
    assert data["pipeline_tag"] == "text-generation"
    assert data["license"] == "apache-2.0"
    assert data["tags"] == [*TAGS, "transformers", "base_model:adapter:acme/tiny-llama"]


def test_datasets_are_those_of_the_questions(made: Path) -> None:
    source = {"name": "allenai/ai2_arc", "config": "ARC-Easy", "split": "test", "hub": True}
    change_json(made / "measured" / "report.json", lambda report: report.update(sources=[source]))
    add_evaluation(made / "routers", made / "measured")
    card = ModelCard.load(write_card(made / "routers"))
    assert card.data.datasets == ["allenai/ai2_arc"]
    result = card.data.eval_results[0]
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == ("allenai/ai2_arc", "ARC-Easy", "test")


def test_a_benchmark_finds_the_result_where_it_looks(made: Path) -> None:
    """Read as the Hub's own library reads it."""
    folder = made / "routers" / ".eval_results"
    add_evaluation(made / "routers", made / "measured")
    write_card(made / "routers")
    assert not folder.exists()  # made questions are no dataset of the Hub
    for name, config, task in (("openai/gsm8k", "main", "gsm8k"), ("allenai/ai2_arc", "ARC-Easy", "ARC-Easy")):
        source = {"name": name, "config": config, "split": "test", "hub": True}
        change_json(made / "routers" / "measured" / "report.json", lambda report: report.update(sources=[source]))  # noqa: B023
        write_card(made / "routers")
        (entry,) = parse_eval_result_entries(yaml.safe_load((folder / "measured.yaml").read_text()))
        report = json.loads((made / "measured" / "report.json").read_text())
        assert (entry.dataset_id, entry.task_id) == (name, task)
        assert entry.value == pytest.approx(100 * report["routed"]["right"] / 40)
        assert "40 questions of test" in str(entry.notes)
    (folder / "theirs.yaml").write_text("- {dataset: {id: acme/d, task_id: x}, value: 1}\n")
    shutil.rmtree(made / "routers" / "measured")
    write_card(made / "routers")
    assert [path.name for path in folder.iterdir()] == ["theirs.yaml"]


def test_results_are_those_of_the_report(made: Path) -> None:
    report = json.loads((made / "measured" / "report.json").read_text())
    add_evaluation(made / "routers", made / "measured")
    card = ModelCard.load(write_card(made / "routers"))
    accuracy, passes = card.data.eval_results
    assert accuracy.metric_type == "accuracy"
    assert accuracy.metric_value == pytest.approx(report["routed"]["right"] / 40, abs=1e-4)
    assert accuracy.metric_args["questions"] == 40
    assert accuracy.metric_args["interval_95"] == pytest.approx(report["routed"]["interval"], abs=1e-4)
    assert passes.metric_value == pytest.approx(report["mean_passes"], abs=1e-4)
    row = next(line for line in card.text.splitlines() if line.startswith("| khop"))
    for share in ("base", "routed"):
        assert f"| {report[share]['right'] / 40:.3f} [" in row
    assert f"| {report['mean_passes']:.2f} of 8 |" in row
    figure = re.search(r"!\[[^]]*\]\(([^)]+)\)", card.text)
    assert figure is not None
    assert (made / "routers" / figure[1]).read_bytes().startswith(b"\x89PNG")


def test_an_evaluation_inside_the_adapter_is_on_its_card_at_once(made: Path) -> None:
    evaluate_adapter(str(made / "routers"), load_questions("khop", limit=20, seed=2), made / "routers" / "evaluation",
                     mode="cloze", layer_budget=5)  # fmt: skip
    card = ModelCard.load(made / "routers" / "README.md")
    assert "| khop (cloze, float32, layer budget 5) | accuracy | 20 |" in card.text
    assert "Nothing has been measured" not in card.text


def test_figures_of_other_weights_are_refused(made: Path) -> None:
    change_json(made / "measured" / "report.json", lambda report: report.update(adapter_checksum="f" * 64))
    with pytest.raises(DrLLMError, match="ffffffffffff"):
        add_evaluation(made / "routers", made / "measured")
    assert not (made / "routers" / "measured").exists()
    shutil.copytree(made / "measured", made / "routers" / "measured")
    before = (made / "routers" / "README.md").read_bytes()
    with pytest.raises(DrLLMError, match="other"):
        write_card(made / "routers")
    assert (made / "routers" / "README.md").read_bytes() == before


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"routed": {"value": "many"}}'])
def test_damaged_reports_are_refused(damage: str, made: Path) -> None:
    (made / "measured" / "report.json").write_text(damage)
    with pytest.raises(DrLLMError, match="must be a report of drllm eval"):
        add_evaluation(made / "routers", made / "measured")


def test_the_card_says_how_it_was_made(made: Path) -> None:
    text = (made / "routers" / "README.md").read_text()
    for said in ("30 of khop, mode cloze", "simulations 20", "length_penalty 1.0", "price 0.4", "epochs 2", "seed 0",
                 f"torch {version('torch')}", "ships with drllm-adapter"):  # fmt: skip
        assert said in text, said
    on_the_hub(made)
    change_json(made / "routers" / "training.json",
                lambda record: record["supervision"].update(base_revision="0123456789abcdef"))  # fmt: skip
    text = write_card(made / "routers").read_text()
    assert "[acme/tiny-llama](https://huggingface.co/acme/tiny-llama) at revision `0123456789ab`" in text


def test_the_configuration_says_what_an_adapter_is_and_the_report_how_it_was_made(made: Path) -> None:
    routers = made / "routers"
    config, report = (json.loads((routers / name).read_text()) for name in ("adapter_config.json", "training.json"))
    assert "training" not in config
    assert load_training_record(routers) == report
    # Weights that were trained further by other means, and an adapter as version 0.1.0 saved it.
    change_json(routers / "adapter_config.json", lambda config: config.update(checksum="f" * 64))
    assert load_training_record(routers) == {}
    change_json(routers / "adapter_config.json", lambda config: config.update(config, training={"version": "0.1.0"}))
    (routers / "training.json").unlink()
    assert load_training_record(routers) == {"version": "0.1.0"}


def test_an_adapter_and_its_card_as_earlier_versions_wrote_them(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "smollm2_arc" / "adapter"
    adapter = Path(shutil.copytree(example, tmp_path / "adapter"))
    assert {"settings_checksum", "training"} <= json.loads((adapter / "adapter_config.json").read_text()).keys()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = check_adapter_folder(adapter)
    assert config.checksum is not None
    assert load_training_record(adapter)["best_epoch"] == 10
    path = adapter / "README.md"
    note = "<!-- drllm rewrites what stands between its markers, unless you changed it. All other text is yours. -->"
    path.write_text(f"{note}\n{path.read_text()}\n<!-- drllm written 03efd39c3b2f -->\n")
    card = ModelCard.load(write_card(adapter))
    assert "unless you changed it" not in card.text
    assert "drllm written" not in card.text
    assert "An example of what sharing looks like, not of a gain" in card.text  # somebody's own words
    assert "0.427 [0.372, 0.483]" in card.text


def test_no_folder_of_this_machine_is_on_a_card(made: Path) -> None:
    for name in ("routers", "paths"):
        text = write_card(made / name).read_text()
        assert str(BASE.parent) not in text
        assert str(made) not in text


def test_results_of_the_harness(made: Path) -> None:
    folder = made / "routers" / "harness"
    folder.mkdir()
    (folder / "drllm.json").write_text('{"kind": "evaluation"}')
    checksum = json.loads((made / "routers" / "adapter_config.json").read_text())["checksum"]
    result = {"task": "piqa", "metric": "acc", "base": 0.5, "routed": 0.625, "count": 8, "interval": [-0.1, 0.3]}
    report = {"adapter_checksum": checksum, "dtype": "float32", "depth_control": -0.5, "layer_budget": None,
              "harness": "0.4.13", "num_blocks": 8, "mean_passes": 6.5, "results": [result]}  # fmt: skip
    (folder / "report.json").write_text(json.dumps(report))
    card = ModelCard.load(write_card(made / "routers"))
    row = "acc | 8 | 0.500 | 0.625 | +0.125 [-0.100, +0.300] | 6.50 of 8 |"
    assert f"| piqa (lm-evaluation-harness 0.4.13) (float32) | {row}" in card.text
    accuracy, passes = card.data.eval_results
    assert (accuracy.dataset_type, accuracy.metric_value, passes.metric_value) == ("piqa", 0.625, 6.5)


def test_the_code_on_the_card_runs(made: Path) -> None:
    """As a reader would: run where the adapter lies, for the embedded base, one in a folder and one on the Hub."""
    shutil.copytree(BASE, made / "acme" / "tiny")
    codes = []
    # Without a Hub, a relative path is what reads like a name on it.
    for base in (None, str(made / "acme" / "tiny"), "acme/tiny"):
        if base is not None:
            on_the_hub(made, base)
        code = re.search(r"```python\n(.*?)```", write_card(made / "routers").read_text(), re.S)
        assert code is not None
        codes.append(code[1])
        shutil.copytree(made / "routers", made / str(len(codes)) / "routers")
        shutil.copytree(BASE, made / str(len(codes)) / "tiny")
        shutil.copytree(BASE, made / str(len(codes)) / "acme" / "tiny")
    program = "\n".join(
        f"import os\nos.chdir({str(made / str(place))!r})\n{code}\nprint(type(model).__name__, "
        "sum('router' in name for name, _ in model.named_parameters()))"
        for place, code in enumerate(codes, 1)
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["PeftModelForCausalLM 32"] * 3
    assert ["AutoPeftModelForCausalLM" in code for code in codes] == [False, False, True]


def test_edits_survive(made: Path) -> None:
    path = made / "routers" / "README.md"
    text = path.read_text()
    text = text.replace("## Limits", "My own words.\n\n## Limits").replace("## How it was made", "## Made so")
    text = text.replace("- dr-llm", "- mine\n- dr-llm").replace("pipeline_tag: text-generation\n", "")
    text = text.replace("library_name", "license: mit\nlibrary_name")
    path.write_text(text.replace("\n", "\r\n"), newline="")
    add_evaluation(made / "routers", made / "measured")
    for _ in range(2):
        card = ModelCard.load(write_card(made / "routers"))
        assert card.data.license == "mit"
        assert card.data.tags == [*TAGS, "transformers", "mine"]
        assert "My own words." in card.text
        assert "## Made so" in card.text
        assert "Nothing has been measured" not in card.text  # between markers
        assert card.text.count("| khop (cloze") == 1
        assert len(card.data.eval_results) == 2


def test_results_of_others_survive_and_ours_are_not_doubled(made: Path) -> None:
    add_evaluation(made / "routers", made / "measured")
    path = write_card(made / "routers")
    theirs = metadata_eval_result(
        model_pretty_name="x", task_pretty_name="t", task_id="text-generation", metrics_pretty_name="m",
        metrics_id="perplexity", metrics_value=12.5, dataset_pretty_name="d", dataset_id="acme/d",
    )  # fmt: skip
    data = metadata_load(path)
    assert data is not None
    data["model-index"][0]["results"] += theirs["model-index"][0]["results"]
    metadata_save(path, data)
    shutil.rmtree(made / "routers" / "measured")
    results = ModelCard.load(write_card(made / "routers")).data.eval_results
    assert [(result.metric_type, result.metric_value) for result in results] == [("perplexity", 12.5)]


def test_a_card_without_markers_keeps_its_text(made: Path) -> None:
    path = made / "routers" / "README.md"
    path.write_text("---\nlicense: mit\n---\n\n# All mine\n")
    write_card(made / "routers")
    card = ModelCard.load(path)
    assert card.text.strip().startswith("# All mine")
    assert "drllm:" not in card.text
    assert card.data.library_name == "peft"


def test_a_section_that_was_taken_out_does_not_come_back(made: Path) -> None:
    path = made / "routers" / "README.md"
    path.write_text(re.sub(r"## Limits.*<!-- /drllm:limits -->", "", path.read_text(), flags=re.S))
    add_evaluation(made / "routers", made / "measured")
    text = write_card(made / "routers").read_text()
    assert "cannot be merged" not in text
    assert "| khop (cloze" in text


def test_pefts_own_card_gives_way(made: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), made / "routers")
    (made / "saved").mkdir()
    shutil.copy(made / "routers" / "adapter_config.json", made / "saved")
    model.create_or_update_model_card(str(made / "saved"))
    assert "Model Card for Model ID" in (made / "saved" / "README.md").read_text()
    for _ in range(2):
        card = ModelCard.load(write_card(made / "saved"))
        assert "Model Card for Model ID" not in card.text
        assert set(TAGS) <= set(card.data.tags)
        assert "base_model" not in card.data.to_dict()  # PEFT gives the folder's name
        model.save_pretrained(str(made / "saved"))  # PEFT rewrites the fields of what is there now


@pytest.mark.parametrize("description", [None, "This is the model card of a 🤗 transformers model that was pushed."])
def test_what_was_written_into_a_template_survives(made: Path, description: str | None) -> None:
    path = made / "routers" / "README.md"
    template = ModelCard.from_template(ModelCardData(license="mit", tags=["mine"]), model_description=description)
    template.save(path)
    card = ModelCard.load(write_card(made / "routers"))
    assert "Model Card for Model ID" not in card.text
    assert (card.data.license, card.data.library_name) == ("mit", "peft")
    assert card.data.tags == [*TAGS, "transformers", "mine"]
    template.text = template.text.replace("### Model Description", "### Model Description\n\nMy own words.")
    template.save(path)
    card = ModelCard.load(write_card(made / "routers"))
    assert "My own words." in card.text
    assert "Model Card for Model ID" in card.text


def test_an_adapter_of_another_method_is_pushed_with_its_own_card(tmp_path: Path) -> None:
    class Model:
        def _upload_modified_files(self, *args: Any) -> Any:
            return args

    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "README.md").write_text("# A LoRA\n")
    model = Model()
    CardOnPush(model).attach()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model._upload_modified_files(str(tmp_path), "me/lora") == (str(tmp_path), "me/lora")
    assert (tmp_path / "README.md").read_text() == "# A LoRA\n"


def test_bad_front_matter_is_refused(made: Path) -> None:
    path = made / "routers" / "README.md"
    path.write_text("---\nlicense: [mit\n---\n# Mine\n")
    with pytest.raises(DrLLMError, match="front matter"):
        write_card(made / "routers")
    assert path.read_text() == "---\nlicense: [mit\n---\n# Mine\n"


def test_edits_on_the_hub_survive(made: Path) -> None:
    path = made / "routers" / "README.md"
    fresh = path.read_text()
    there = fresh.replace("## Limits", "Written there.\n\n## Limits")
    here = fresh.replace("## Limits", "Written here.\n\n## Limits")
    assert "Written there." in write_card(made / "routers", on_hub=there).read_text()
    path.write_text(here)
    assert "Written here." in write_card(made / "routers", on_hub=fresh).read_text()
    path.write_text(here)
    with pytest.raises(DrLLMError, match="one place"):
        write_card(made / "routers", on_hub=there)
    assert path.read_text() == here
    path.unlink()
    assert "Written there." in write_card(made / "routers", on_hub=there).read_text()


def test_a_licence_chosen_here_goes_to_the_hub(made: Path) -> None:
    pushed = write_card(made / "routers", license="apache-2.0").read_text()
    words = pushed.replace("## Limits", "Pushed words.\n\n## Limits")
    write_card(made / "routers", license="mit")
    card = ModelCard.load(write_card(made / "routers", on_hub=words))
    assert card.data.license == "mit"
    assert "Pushed words." in card.text


def test_the_name_on_the_hub_is_in_the_code(made: Path) -> None:
    assert '"me/routers")' in write_card(made / "routers", repo_id="me/routers").read_text()
    assert 'load_dataset("me/paths"' in write_card(made / "paths", repo_id="me/paths").read_text()


def test_no_card_for_other_folders(tmp_path: Path) -> None:
    with pytest.raises(DrLLMError, match="neither"):
        write_card(tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_the_templates_no_long_work_begins(tmp_path: Path) -> None:
    package = Path(drllm_adapter.__file__).parent
    shutil.copytree(package, tmp_path / "src" / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "drllm_adapter", "search", str(BASE), "--task", "khop", "--limit", "2",
               "--output", str(tmp_path / "paths")]  # fmt: skip
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(tmp_path / "src")}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert re.fullmatch(r"drllm: [^\n]*hub_cards[^\n]*\.\n", done.stderr), done.stderr
    assert not (tmp_path / "paths").exists()


# Supervision sets


def test_the_card_of_a_supervision_set(made: Path) -> None:
    card = DatasetCard.load(made / "paths" / "README.md")
    rows = read_rows(made / "paths")
    labels = [row.decisions for row in rows if row.decisions is not None]
    right = sum(row.base_correct for row in rows)
    skipped = sum(label.count(0) for label in labels) / (8 * len(labels))
    assert card.data.license == "apache-2.0"
    for said in (f"| questions with a label | {len(labels)} of 30 |", f"own path | {100 * right / 30:.1f} % |",
                 f"skip {100 * skipped:.1f} %", "simulations 20", "rule price", "khop: apache-2.0"):  # fmt: skip
        assert said in card.text, said
    assert (made / "paths" / "labels.png").read_bytes().startswith(b"\x89PNG")
    assert all(f"`{name}`" in card.text for name in SCHEMA.names)


def test_the_viewer_finds_rows_features_and_splits(made: Path) -> None:
    """By what `datasets` makes of the card alone, and of the data behind it."""
    import datasets

    declared = datasets.info.DatasetInfosDict.from_dataset_card_data(
        DatasetCard.load(made / "paths" / "README.md").data
    )
    rows = datasets.load_dataset(str(made / "paths"))
    assert list(rows) == ["train"]
    assert declared["default"].features == rows["train"].features
    assert declared["default"].splits["train"].num_examples == len(rows["train"]) == 30
    assert datasets.get_dataset_config_names(str(made / "paths")) == ["default"]
    file = made / "paths" / "data" / "train-00000-of-00001.parquet"
    assert declared["default"].download_size == file.stat().st_size


def test_a_revision_of_the_base_is_no_part_of_its_link(made: Path) -> None:
    (made / "paths" / "README.md").unlink()
    change_json(made / "paths" / "search.json", lambda info: info.update(base_model="acme/tiny@v1.2"))
    text = write_card(made / "paths").read_text()
    assert "[acme/tiny](https://huggingface.co/acme/tiny) at revision `v1.2`" in text


def test_an_unknown_licence_is_not_guessed(made: Path) -> None:
    (made / "paths" / "README.md").unlink()
    source = {"name": "questions.jsonl", "config": None, "split": None, "hub": False}
    change_json(made / "paths" / "search.json", lambda info: info.update(sources=[source]))
    card = DatasetCard.load(write_card(made / "paths"))
    assert "license" not in card.data.to_dict()
    assert "questions.jsonl: not known here" in card.text
