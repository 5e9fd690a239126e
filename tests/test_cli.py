"""The commands as a new user types them, on the embedded model; bad input ends in one sentence and exit code 2."""

import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import command
from rich.table import Table
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from unrolled import tiny_model

import drllm_adapter
from drllm_adapter.cli.options import console, say
from drllm_adapter.demo import BASE
from drllm_adapter.demo.khop import generate
from drllm_adapter.scoring.plain import Scorer
from drllm_adapter.search import SearchConfig
from drllm_adapter.tasks import load_questions
from drllm_adapter.workflow import search_paths
from drllm_adapter.workflow.begin import teller

Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command and give what it printed."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which --threads changes

    def call(*arguments: Any) -> str:
        code = command(*arguments)
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    return call


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that must be refused and give the one sentence that says so."""

    def call(*arguments: Any) -> str:
        code = command(*arguments)
        error = capsys.readouterr().err
        assert code == 2, error
        assert re.fullmatch(r"drllm: [^\n]+\.\n", error), error
        return error

    return call


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with questions, a supervision set in `paths` and an adapter in `adapter`, made by the commands."""
    folder = tmp_path_factory.mktemp("made")
    for name, count, seed in (("train", 60, 0), ("test", 40, 1)):
        lines = [json.dumps({**item, "prompt": item["question"]}) for item in generate(count, seed)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    for arguments in (
        ["search", BASE, "--task", "jsonl", "--data", "train.jsonl", "--mode", "cloze", "--simulations", 30,
         "--output", "paths"],
        ["train", "paths", "--output", "adapter", "--epochs", 8],
    ):  # fmt: skip
        assert command(*arguments, folder=folder) == 0
    return folder


def test_help_is_quick_and_loads_no_torch() -> None:
    code = (
        "import sys\nfrom drllm_adapter.cli import main\ntry: main()\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    for arguments in (["--help"], ["search", "--help"], ["demo", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
        assert "Usage" in done.stdout


def test_the_main_process_says_first_what_all_refuse(
    refuse: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their launcher ends all processes when one of them has left, and only the main one speaks."""
    waited: list[float] = []
    monkeypatch.setattr("drllm_adapter.cli.commands.time.sleep", waited.append)
    refuse("info", "not there")
    assert waited == []
    monkeypatch.setenv("RANK", "1")
    assert command("info", "not there") == 2
    assert waited == [10]
    assert capsys.readouterr().err == ""


def test_help_fits_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Brackets are as written, lines break where the terminal ends, and the longest help can be read at 80 columns."""
    monkeypatch.setenv("COLUMNS", "300")
    out = run("app", "--help")
    assert "owner/name[@branch]" in out
    about = next(line.strip() for line in out.splitlines() if "Click on a block" in line)
    assert about.endswith("Needs the extra app: pip install 'drllm-adapter[app]'. Nothing is sent anywhere.")
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("search", "--help").splitlines()
    assert len(lines) < 150
    assert max(map(len, lines)) == 80
    usual = lines[next(i for i, line in enumerate(lines) if " Options " in line) :]
    usual = usual[: next(i for i, line in enumerate(usual) if line.startswith("╰"))]
    assert sum(line.startswith("│ --") for line in usual) == 8
    assert any("[letter|cloze|contrast|free|self]" in line for line in usual)


def test_the_version(run: Run) -> None:
    assert run("--version").strip() == drllm_adapter.__version__


def test_the_search_is_readable_with_datasets(made: Path) -> None:
    import datasets

    rows = datasets.load_dataset(str(made / "paths"), split="train")
    assert len(rows) == 60
    assert rows[0]["paths"][0]["decisions"] == [1] * 8
    assert all(row["base_correct"] == row["paths"][0]["correct"] for row in rows)


def test_the_same_seed_gives_the_same_rows_and_weights(made: Path, tmp_path: Path, run: Run) -> None:
    search = ["search", BASE, "--task", "jsonl", "--data", made / "train.jsonl", "--mode", "cloze", "--simulations", 30]
    run(*search, "--output", tmp_path / "paths")
    data = Path("paths") / "data" / "train-00000-of-00001.parquet"
    assert (tmp_path / data).read_bytes() == (made / data).read_bytes()
    run("train", tmp_path / "paths", "--output", tmp_path / "adapter", "--epochs", 8)
    first, second = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (made, tmp_path))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_number_of_threads_does_not_change_the_rows(tmp_path: Path, run: Run) -> None:
    found = []
    for threads in (1, 3):
        run("search", BASE, "--task", "khop", "--mode", "cloze", "--limit", 12, "--simulations", 10, "--output",
            tmp_path / str(threads), "--threads", threads)  # fmt: skip
        assert torch.get_num_threads() == threads
        found.append((tmp_path / str(threads) / "data" / "train-00000-of-00001.parquet").read_bytes())
    assert found[0] == found[1]


def test_overwriting_replaces_what_the_same_command_left(made: Path, tmp_path: Path, run: Run, refuse: Run) -> None:
    search = ["search", BASE, "--task", "khop", "--mode", "cloze", "--simulations", 3, "--output", tmp_path / "paths"]
    run(*search, "--limit", 3)
    (tmp_path / "paths" / "note.txt").write_text("of the first")
    assert "already holds" in refuse(*search, "--limit", 4)
    assert "both were given" in refuse(*search, "--limit", 4, "--overwrite", "--resume")
    assert "--mode" in refuse(*search, "--overwrite", "--mode", "clozee")  # nothing is removed for what is refused
    assert (tmp_path / "paths" / "note.txt").exists()
    run(*search, "--limit", 4, "--overwrite", "--json", tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text())["questions"] == 4
    assert not (tmp_path / "paths" / "note.txt").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    assert "something else" in refuse(*search[:-1], tmp_path / "mine", "--overwrite")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_fit_goes_from_questions_to_an_evaluated_adapter(tmp_path: Path, run: Run, refuse: Run) -> None:
    """In a second run of other words the same; what is tested was not learnt from."""
    asked = [item["question"] for item in generate(40, 0)]
    (tmp_path / "prompts.txt").write_text("\n".join(asked))
    fit = ["fit", BASE, "--data", tmp_path / "prompts.txt", "--max-new-tokens", 2, "--max-loss", 50]
    out = run(*fit, "--output", tmp_path / "adapter", "--json", tmp_path / "fit.json")
    saved = json.loads((tmp_path / "fit.json").read_text())
    assert f"Verdict: {saved['verdict']}" in out
    assert "Nothing was uploaded" in run(*suggested(out), "--dry-run")
    report = json.loads((tmp_path / "adapter" / "evaluation" / "report.json").read_text())
    assert report["routed"]["of"] == 8
    assert report["trained_on"] is None
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "prompts.txt" in card
    assert "Nothing has been measured yet." not in card
    info = run("info", tmp_path / "adapter")
    assert re.search(r"skipped +\|.{8}\| blocks 0 to 7, at most \d+ % of the questions", info)
    (tmp_path / "few.txt").write_text("\n".join(asked[:5]))
    few = refuse("fit", BASE, "--data", tmp_path / "few.txt", "--output", tmp_path / "x")
    assert "20 at least, but 5 were given" in few
    assert not (tmp_path / "x").exists()


def test_eval_agrees_with_a_plain_count(made: Path, tmp_path: Path, run: Run) -> None:
    """The report's accuracy against transformers' own loading and generating, one question at a time."""
    out = run("eval", made / "adapter", "--task", "jsonl", "--data", made / "test.jsonl", "--mode", "cloze",
              "--output", tmp_path / "evaluation")  # fmt: skip
    report = json.loads((tmp_path / "evaluation" / "report.json").read_text())
    assert "mean passes" in out
    assert (tmp_path / "evaluation" / "layers.png").read_bytes().startswith(b"\x89PNG")
    model = AutoModelForCausalLM.from_pretrained(made / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    right, passes = 0, 0
    for item in map(json.loads, (made / "test.jsonl").read_text().splitlines()):
        ids = tokenizer(item["question"], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(ids).logits[0, -1]
        letters = tokenizer.convert_tokens_to_ids(item["choices"])
        right += int(logits[letters].argmax()) == item["answer"]
        passes += int(drllm_adapter.last_decisions(model).sum())
    assert report["routed"]["right"] == right
    assert report["mean_passes"] == pytest.approx(passes / 40)
    assert report["routed"]["of"] == sum(report["passes"].values()) == 40
    assert [sum(row) for row in report["decisions"]] == [40] * 8


def suggested(out: str) -> list[str]:
    """The command that an output ends by suggesting, as it is printed."""
    return shlex.split(out.rpartition("Next: drllm ")[2])


@pytest.mark.parametrize("mode", ["contrast", "free", "self"])
def test_commands_that_are_suggested_run_as_they_are_printed(
    mode: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a search to an evaluation that is on the adapter's card; all follow how the adapter was trained."""
    monkeypatch.chdir(tmp_path)
    for name, count, seed in (("train.jsonl", 30, 0), ("TEST_QUESTIONS", 12, 1)):
        made = [
            {"prompt": item["question"], "answer": item["choices"][item["answer"]]} for item in generate(count, seed)
        ]
        Path(name).write_text("\n".join(map(json.dumps, made)))
    grader = ["--grader", "contains"] if mode == "free" else []
    followed = f"As in training: {' '.join(['--mode', mode, '--task jsonl', *grader])}."
    out = run("search", BASE, "--task", "jsonl", "--data", "train.jsonl", "--mode", mode, "--simulations", 15,
              "--max-new-tokens", 2, *grader, "--output", "my [paths]")  # fmt: skip
    out = run(*suggested(out), "--epochs", 2)
    out = run(*suggested(out), "--max-new-tokens", 2)
    report = json.loads(Path("adapter/evaluation/report.json").read_text())
    assert report["mode"] == mode
    assert followed in out
    assert "TEST_QUESTIONS" in Path("adapter/README.md").read_text()
    with open("train.jsonl", "a") as file:
        file.write('\n{"prompt": ""}')
    out = run("refine", "adapter", "--data", "train.jsonl", "--max-steps", 1, "--max-new-tokens", 2, "--skip-bad",
              "--output", "my adapter")  # fmt: skip
    assert followed in out
    assert "1 questions that cannot be asked are left out" in out
    learnt = json.loads(Path("my adapter/training.json").read_text())["supervision"]
    assert (learnt["questions"], learnt["mode"], learnt["wording"]) == (30, mode, "plain")
    assert followed in run(*suggested(out), "--max-new-tokens", 2)


@pytest.mark.slow
def test_a_demo_suggests_what_runs(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = run("demo", "--output", "my demo", "--questions", 20, "--test-questions", 20, "--simulations", 3)
    generates, shows = out.splitlines()[-2:]
    assert "passes, 8 blocks" in run(*shlex.split(generates.rpartition("Try: drllm ")[2]))
    assert shows.startswith("Or see it in a browser: ")
    assert shows.endswith("drllm app 'my demo/adapter'")


def test_text_of_people_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    console.print(Table("[/INST]", title="[b]:smile:"))
    teller(console)("[INST] hi [/INST] :smile:")
    say("runs/[1]")
    said = capsys.readouterr().out
    assert all(text in said for text in ("[/INST]", "[b]:smile:", "[INST] hi [/INST] :smile:\n", "runs/[1]\n"))


def test_what_was_trained_on_a_dataset_is_evaluated_on_its_test_split(tmp_path: Path, made: Path, refuse: Run) -> None:
    split = tmp_path / "set"
    split.mkdir()
    shutil.copy(made / "train.jsonl", split / "train.jsonl")
    assert "must have a split 'test'" in refuse("eval", made / "adapter", "--data", split)


def test_generate_shows_the_path(made: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    question = generate(1, 5, [1])[0]
    prompt = question["question"]
    out = run("generate", made / "adapter", prompt, "--show-path", "--max-new-tokens", 1, "--json", tmp_path / "g.json")
    saved = json.loads((tmp_path / "g.json").read_text())
    assert out.splitlines()[0] == saved["text"]
    assert f"({saved['passes']} passes, 8 blocks)" in out
    (tmp_path / "prompt.txt").write_text(prompt + "\n")
    assert (
        run("generate", made / "adapter", "--file", tmp_path / "prompt.txt", "--max-new-tokens", 1)
        == saved["text"] + "\n"
    )
    monkeypatch.setattr("sys.stdin", io.StringIO(prompt + "\n"))
    assert run("generate", made / "adapter", "-", "--max-new-tokens", 1) == saved["text"] + "\n"
    out = run("generate", made / "adapter", prompt, "--show-path", "--layer-budget", 3, "--max-new-tokens", 1)
    assert int(re.search(r"\((\d+) passes", out)[1]) <= 3  # type: ignore[index]


def test_generate_answers_a_file_of_prompts(made: Path, tmp_path: Path, run: Run) -> None:
    asked = [item["question"] for item in generate(4, 5)]
    saved = tmp_path / "g.json"
    (tmp_path / "prompts.txt").write_text("\n".join(asked))
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in asked))
    options = ["--max-new-tokens", 2, "--compare", "--layer-budget", 4]
    outs = [
        run("generate", made / "adapter", "--prompts", tmp_path / f"prompts.{end}", *options, "--json", saved)
        for end in ("txt", "jsonl")
    ]
    found = [[json.loads(line) for line in out.splitlines()] for out in outs]
    assert [item["prompt"] for item in found[0]] == asked
    assert json.loads(saved.read_text()) == found[1]
    base = AutoModelForCausalLM.from_pretrained(BASE)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    for one, other in zip(*found, strict=True):
        assert (one["text"], one["decisions"]) == (other["text"], other["decisions"])
        assert one["passes"] <= 4
        ids = tokenizer(one["prompt"], return_tensors="pt")["input_ids"]
        out = base.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        assert one["base"]["text"] == tokenizer.decode(out, skip_special_tokens=True)
        assert one["base"]["passes"] == 8


def test_generate_talks(made: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (item["question"] for item in generate(2, 5, [1]))
    base = Path(shutil.copytree(BASE, tmp_path / "base"))
    (base / "chat_template.jinja").write_text("{% for message in messages %}{{ message['content'] }} {% endfor %}")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{first}\n{second}\n\nnot asked\n"))
    out = run("generate", made / "adapter", "--chat", "--compare", "--base", base, "--max-new-tokens", 1,
              "--json", tmp_path / "talk.json")  # fmt: skip
    turns = json.loads((tmp_path / "talk.json").read_text())
    assert out.split() == [text for turn in turns for text in (turn["text"], turn["base"]["text"])]
    assert [turn["prompt"] for turn in turns] == [
        [["user", first]], [["user", first], ["assistant", turns[0]["text"]], ["user", second]]
    ]  # fmt: skip


def test_plain_characters_where_others_cannot_be_shown(made: Path) -> None:
    """Tables, too, whose lines are no ASCII elsewhere."""
    code = (
        "import sys\nfrom drllm_adapter.cli import main\n"
        "for arguments in ('generate adapter a>b --show-path --layer-budget 5 --max-new-tokens 1',\n"
        "                  'eval adapter --data test.jsonl --limit 4'):\n"
        "    sys.argv[1:] = arguments.split()\n    try: main()\n    except SystemExit as stop: assert not stop.code\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=made, check=True, capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    shown = done.stdout.decode("ascii")
    assert "path  " in shown
    assert "Verdict: " in shown
    assert "?" not in shown


def test_info_says_what_it_fits_and_how_it_was_trained(made: Path, tmp_path: Path, run: Run) -> None:
    out = run("info", made / "adapter", "--json", tmp_path / "info.json")
    facts = json.loads((tmp_path / "info.json").read_text())
    for said in ("llama, 8 blocks of width 96", "60 questions", "weighted labels at price 0.4", "30 simulations"):
        assert said in out
    weights = load_file(made / "adapter" / "adapter_model.safetensors")
    assert f"{sum(value.numel() for value in weights.values()):,}" in facts["weights"]
    assert facts["number of weights"] == sum(value.numel() for value in weights.values())
    assert facts["training"]["metrics"]["routers"]["mean_passes"] > 0


def test_labels_can_be_changed_without_searching_again(made: Path, tmp_path: Path, run: Run) -> None:
    run("train", made / "paths", "--output", tmp_path / "shortest", "--labels", "shortest", "--epochs", 2)
    run("train", made / "paths", "--output", tmp_path / "dear", "--price", 4, "--epochs", 2)
    passes = {
        name: json.loads((folder / "training.json").read_text())["metrics"]["label_mean_passes"]
        for name, folder in (("made", made / "adapter"), ("s", tmp_path / "shortest"), ("d", tmp_path / "dear"))
    }
    assert passes["d"] < passes["made"]
    assert passes["s"] != passes["made"]


def test_the_card_names_constants_and_results(made: Path) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(made / "adapter" / "README.md")
    assert card.data.library_name == "peft"
    assert "60 of train.jsonl" in card.text
    assert "Nothing has been measured yet." in card.text


def test_card_takes_reports_and_a_licence(made: Path, tmp_path: Path, run: Run, refuse: Run) -> None:
    from huggingface_hub import ModelCard

    adapter = Path(shutil.copytree(made / "adapter", tmp_path / "adapter"))
    run(
        "eval", adapter, "--task", "jsonl", "--data", made / "test.jsonl", "--mode", "cloze", "--output", tmp_path / "e"
    )
    run("card", adapter, "--space", "me/demo")
    run("card", adapter, "--report", tmp_path / "e", "--license", "mit", "--json", tmp_path / "card.json")
    assert json.loads((tmp_path / "card.json").read_text())["card"] == (adapter / "README.md").read_text()
    card = ModelCard.load(adapter / "README.md")
    assert card.data.license == "mit"
    assert "| test.jsonl (cloze" in card.text
    assert "the Space [me/demo](https://huggingface.co/spaces/me/demo)" in card.text  # named once, kept from then on
    assert "report.json" in refuse("card", adapter, "--report", tmp_path)
    assert "leave out --space" in refuse("card", made / "paths", "--space", "me/demo")
    assert "neither" in refuse("card", tmp_path / "e")
    assert "is no folder that exists" in refuse("card", tmp_path / "nowhere")


def test_an_interrupted_search_goes_on(made: Path, tmp_path: Path, run: Run, refuse: Run) -> None:
    search = ["search", BASE, "--task", "jsonl", "--data", made / "train.jsonl", "--mode", "cloze", "--simulations", 30,
              "--output", tmp_path / "paths"]  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "drllm_adapter", *map(str, search)])
    shards = tmp_path / "paths" / "shards"
    while not list(shards.glob("*.parquet")):
        assert process.poll() is None, "the search ended before it could be killed"
    process.kill()
    process.wait()
    assert "interrupted" in refuse("train", tmp_path / "paths", "--output", tmp_path / "adapter")
    assert "--resume" in refuse(*search)
    assert "with simulations 30, but 31 was given" in refuse(*search, "--resume", "--simulations", 31)
    run(*search, "--resume")
    run(*search, "--resume")
    finished = refuse(*search)
    assert "already holds a supervision set; choose another folder" in finished
    data = Path("paths") / "data" / "train-00000-of-00001.parquet"
    assert (tmp_path / data).read_bytes() == (made / data).read_bytes()


def test_an_interrupted_evaluation_goes_on(
    made: Path, tmp_path: Path, run: Run, refuse: Run, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    evaluate = ["eval", made / "adapter", "--task", "jsonl", "--data", made / "test.jsonl", "--mode", "cloze",
               "--batch-size", 8, "--output"]  # fmt: skip
    run(*evaluate, tmp_path / "whole")
    score, calls = Scorer.score, []

    def interrupt(self: Any, *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 7:
            signal.raise_signal(signal.SIGTERM)
        return score(self, *arguments)

    monkeypatch.setattr(Scorer, "score", interrupt)
    assert command(*evaluate, tmp_path / "cut") == 130
    assert "56 of 80 answers are saved" in capsys.readouterr().err
    assert "--resume" in refuse(*evaluate, tmp_path / "cut")
    assert "depth_control" in refuse(*evaluate, tmp_path / "cut", "--resume", "--depth-control", 0)
    run(*evaluate, tmp_path / "cut", "--resume")
    assert len(calls) == 10  # five batches of the base and five of the routed model, each once
    for name in ("report.json", "layers.png"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["drllm.json", "layers.png", "report.json"]
    assert "is finished" in refuse(*evaluate, tmp_path / "cut", "--resume")
    assert "already holds an evaluation; choose another folder" in refuse(*evaluate, tmp_path / "cut")


def test_an_interrupted_training_goes_on(
    made: Path, tmp_path: Path, run: Run, refuse: Run, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from drllm_adapter.training import trainer

    train = ["train", made / "paths", "--epochs", 8, "--output"]
    loss, calls = trainer._Run._loss, []

    def interrupt(self: Any, batch: Any) -> Any:
        calls.append(batch)
        if len(calls) == 11:
            signal.raise_signal(signal.SIGINT)
        return loss(self, batch)

    monkeypatch.setattr(trainer._Run, "_loss", interrupt)
    assert command(*train, tmp_path / "cut") == 130
    assert "go on with the same command and --resume" in capsys.readouterr().err
    assert "holds an adapter that is not finished; go on with --resume" in refuse(*train, tmp_path / "cut")
    other = refuse(*train, tmp_path / "cut", "--resume", "--learning-rate", 0.01)
    assert "with learning_rate 0.001, but 0.01 was given" in other
    said = run(*train, tmp_path / "cut", "--resume")
    assert "Next: drllm eval" in said
    assert "--data TEST_QUESTIONS" in said
    assert "already holds an adapter; choose another folder" in refuse(*train, tmp_path / "cut")
    name = "adapter_model.safetensors"
    assert (tmp_path / "cut" / name).read_bytes() == (made / "adapter" / name).read_bytes()
    assert {path.name for path in (tmp_path / "cut").iterdir()} == {path.name for path in (made / "adapter").iterdir()}


def test_questions_of_the_training_are_told(made: Path, tmp_path: Path, run: Run) -> None:
    from huggingface_hub import ModelCard

    adapter = Path(shutil.copytree(made / "adapter", tmp_path / "adapter"))
    evaluate = ["eval", adapter, "--task", "jsonl", "--output"]
    (tmp_path / "renamed.jsonl").write_text((made / "train.jsonl").read_text())
    seen = run(*evaluate, adapter / "seen", "--data", tmp_path / "renamed.jsonl", "--mode", "cloze")
    said = "60 of 60 training questions that the adapter keeps marks of are among those evaluated"
    assert f"Warning: {said}" in seen
    assert said in json.loads((adapter / "seen" / "report.json").read_text())["trained_on"]
    card = ModelCard.load(adapter / "README.md")
    assert said in card.data.eval_results[0].metric_args["trained_on"]
    assert re.search(r"\n\| renamed.jsonl \(.*; known from training, see below\) \|", card.text)
    assert re.search(rf"\nrenamed.jsonl \(.*\): {said}", card.text)

    assert "Warning" not in run(*evaluate, adapter / "new", "--data", made / "test.jsonl", "--mode", "cloze")
    assert json.loads((adapter / "new" / "report.json").read_text())["trained_on"] is None
    # In another wording only the source tells.
    (tmp_path / "train.jsonl").write_text((made / "train.jsonl").read_text().replace('"prompt"', '"note"'))
    told = "trained on questions of train.jsonl, which may be among those evaluated"
    assert told in run(*evaluate, tmp_path / "letter", "--data", tmp_path / "train.jsonl", "--mode", "letter")


# What bad input gets

REFUSALS = (
    ["search", BASE, "--task", "khop", "--mode", "clozee", "--output", "new"],
    ["search", BASE, "--task", "khop", "--labels", "best", "--output", "new"],
    ["search", BASE, "--task", "khop", "--mode", "cloze", "--output", "taken"],
    ["search", "models/llama/instruct", "--task", "khop", "--mode", "cloze", "--output", "new"],
    ["search", "./missing", "--task", "khop", "--mode", "cloze", "--output", "new"],
    ["search", "adapter", "--task", "khop", "--mode", "cloze", "--output", "new"],
    ["search", BASE, "--task", "jsonl", "--data", "free.jsonl", "--mode", "letter", "--output", "new"],
    ["search", BASE, "--task", "jsonl", "--data", "missing.jsonl", "--output", "new"],
    ["train", "./missing", "--output", "new"],
    ["train", "paths", "--output", "taken"],
    ["train", "paths", "--output", "new", "--epochs", 0],
    ["train", "paths", "--output", "new", "--labels", "best"],
    ["train", "paths", "--output", "new", "--base", "./missing"],
    ["eval", "./missing", "--task", "khop", "--mode", "cloze"],
    ["eval", "adapter", "--task", "khop", "--mode", "cloze", "--output", "taken"],
    ["eval", "adapter", "--task", "khop", "--mode", "cloze", "--base", "./missing"],
    ["eval", "adapter", "--lm-eval", "arc_easy", "--include-path", "missing"],
    ["probe", BASE, "--task", "khop", "--output", "taken"],
    ["generate", "./missing", "a>b"],
    ["generate", "adapter", "a>b", "--base", "./missing"],
    ["demo", "--output", "taken"],
    ["bench", "search", "--mode", "clozee"],
    ["fit", BASE, "--data", "free.jsonl", "--push", "no-owner", "--output", "new"],
    ["refine", BASE, "--task", "khop", "--mode", "cloze", "--init", "skips", "--output", "new"],
    ["refine", BASE, "--task", "khop", "--mode", "cloze", "--reward", "agreement", "--output", "new"],
    ["refine", BASE, "--task", "khop", "--mode", "cloze", "--reward", "no.py:f", "--output", "new"],
    ["refine", BASE, "--task", "khop", "--mode", "cloze", "--base", BASE, "--output", "new"],
    ["refine", BASE, "--data", "free.jsonl", "--task", "jsonl", "--mode", "free", "--max-loss", 2, "--output", "new"],
    ["refine", "adapter", "--task", "khop", "--mode", "cloze", "--init", "identity", "--output", "new"],
)


def test_what_needs_no_model_is_refused_before_torch_is_imported(made: Path, tmp_path: Path) -> None:
    """All in one process, which would keep torch once it had it."""
    for name in ("paths", "adapter"):
        (tmp_path / name).symlink_to(made / name)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    (tmp_path / "free.jsonl").write_text('{"question": "q", "answer": "a"}')
    code = (
        "import json, sys\nfrom drllm_adapter.cli import main\nfor arguments in json.load(sys.stdin):\n"
        "    sys.argv[1:] = arguments\n    try: main()\n"
        "    except SystemExit as stop: print(stop.code, 'torch' in sys.modules, 'peft' in sys.modules)"
    )
    asked = json.dumps([[str(part) for part in arguments] for arguments in REFUSALS])
    done = subprocess.run([sys.executable, "-c", code], input=asked, check=True, capture_output=True, text=True,
                          cwd=tmp_path)  # fmt: skip
    for arguments, found in itertools.zip_longest(REFUSALS, done.stdout.splitlines()):
        assert found == "2 False False", (arguments, found, done.stderr)
    said = done.stderr.splitlines()
    assert len(said) == len(REFUSALS)
    assert all(re.fullmatch(r"drllm: .+\.", line) for line in said), said
    assert not (tmp_path / "new").exists()


def test_bad_questions(tmp_path: Path, refuse: Run) -> None:
    for content, expected in {
        "": "at least one question",
        "{not json": "line 1",
        '{"question": "q", "choices": ["a", "b"]}': "answer",
        '{"question": "q", "choices": ["a", "b"], "answer": 2}': "0 to 1",
        json.dumps({"question": "q", "choices": ["x"] * 27, "answer": 0}): "27",
        json.dumps({"question": "a>b " * 200, "choices": ["a", "b"], "answer": 0}): "positions",
    }.items():
        (tmp_path / "bad.jsonl").write_text(content)
        output = tmp_path / "paths"
        error = refuse("search", BASE, "--data", tmp_path / "bad.jsonl", "--output", output, "--mode", "cloze")
        assert expected in error
        assert not output.exists()


def test_bad_models_and_folders(made: Path, tmp_path: Path, refuse: Run) -> None:
    data = ["--data", made / "test.jsonl", "--task", "jsonl", "--mode", "cloze"]
    assert "no-such-model" in refuse("search", tmp_path / "no-such-model", *data, "--output", tmp_path / "x")
    assert "no-such-adapter" in refuse("eval", tmp_path / "no-such-adapter", *data)
    assert "supervision set" in refuse("train", tmp_path, "--output", tmp_path / "x")
    assert "is a file of something else" in refuse("train", made / "test.jsonl", "--output", tmp_path / "x")
    assert "whole numbers" in refuse("bench", "adapter", made / "adapter", "--batch-sizes", "a")
    assert "block indices" in refuse("train", made / "paths", "--layers", "a", "--output", tmp_path / "x")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("mine")
    for begun in (["search", BASE, *data], ["train", made / "paths"], ["eval", made / "adapter", *data], ["demo"]):
        assert "something else" in refuse(*begun, "--output", taken)
        assert [path.name for path in taken.iterdir()] == ["thesis.txt"]
    assert not (tmp_path / "x").exists()


def test_another_base_is_refused(made: Path, tmp_path: Path, refuse: Run, capsys: Any) -> None:
    data = ["--data", made / "test.jsonl", "--task", "jsonl", "--mode", "cloze"]
    for name, model in (("deeper", tiny_model("llama", 9)), ("other", tiny_model("gpt2", 8))):
        model.save_pretrained(tmp_path / name)
        capsys.readouterr()
        shutil.copy(BASE / "tokenizer.json", tmp_path / name)
        shutil.copy(BASE / "tokenizer_config.json", tmp_path / name)
        assert "8 blocks" in refuse("eval", made / "adapter", "--base", tmp_path / name, *data)
        assert "was made with" in refuse("train", made / "paths", "--base", tmp_path / name, "--output", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_damaged_adapters(made: Path, tmp_path: Path, refuse: Run) -> None:
    def damaged(name: str, damage: Callable[[Path], Any]) -> str:
        adapter = tmp_path / name
        shutil.copytree(made / "adapter", adapter)
        damage(adapter / "adapter_model.safetensors")
        return refuse("generate", adapter, "a>b from a 1 hops:")

    def change(path: Path, value: float) -> None:
        weights = load_file(path)
        name = min(weights)
        save_file({**weights, name: torch.full_like(weights[name], value)}, path)

    assert "not finite" in damaged("nan", lambda path: change(path, float("nan")))
    assert "not finite" in damaged("infinite", lambda path: change(path, float("inf")))
    assert "checksum" in damaged("changed", lambda path: change(path, 0.5))
    assert "safetensors" in damaged("truncated", lambda path: path.write_bytes(path.read_bytes()[:1000]))
    assert "safetensors" in damaged("renamed", lambda path: path.rename(path.with_name("weights.safetensors")))
    assert "safetensors" in damaged("foreign", lambda path: path.write_bytes(b"PK\x03\x04 a zip file"))


def test_a_set_with_one_class_only(made: Path, tmp_path: Path, refuse: Run) -> None:
    error = refuse("train", made / "paths", "--output", tmp_path / "x", "--labels", "nonsense")
    assert "price, shortest" in error
    search_paths(str(BASE), load_questions("jsonl", str(made / "train.jsonl")), tmp_path / "paths", mode="cloze",
                 config=SearchConfig(simulations=0))  # fmt: skip
    assert "only execute" in refuse("train", tmp_path / "paths", "--output", tmp_path / "x")
    assert not (tmp_path / "x").exists()


WRONG = (
    ["--simulations", 0],
    ["--bundle", 0],
    ["--reward", "luck"],
    ["--limt", 1],
    ["--labels", "lucky"],
    ["--price", -1],
    ["--mode", "essay"],
    ["--task", "chess"],
    ["--limit", 0],
    ["--random-child", 2],
    ["--dtype", "int8"],
)


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_options(wrong: list[Any], made: Path, tmp_path: Path, refuse: Run) -> None:
    refuse("search", BASE, "--task", "jsonl", "--data", made / "test.jsonl", "--output", tmp_path / "x", *wrong)
    assert not (tmp_path / "x").exists()


def test_a_full_disk(made: Path, tmp_path: Path, refuse: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    data = ["--data", made / "test.jsonl", "--task", "jsonl", "--mode", "cloze"]
    monkeypatch.setattr(os, "fsync", full)
    for begun in (["search", BASE, *data], ["train", made / "paths"], ["eval", made / "adapter", *data]):
        output = tmp_path / str(begun[0])
        assert "No space left" in refuse(*begun, "--output", output)
        assert not output.exists() or not list(output.iterdir())


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["routing", "--decode-tokens", "2", "--prompt-tokens", "32"],
         [*["forced decode", "all execute"] * 2, "mixed batch", "mixed, written out", "routers"]),
    ],
)  # fmt: skip
def test_the_benchmarks_write_ratios(arguments: list[str], names: list[str], tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    code = command("bench", *arguments, "--output", output, "--repetitions", 3)
    assert code in (0, 1)  # tiny models miss the goals, which are for real ones
    bench = json.loads(output.read_text())
    assert [item["name"] for item in bench["results"]] == names
    assert all(item["ratio"] > 0 for item in bench["results"])
    assert (code == 0) == all(item["met"] for item in bench["results"])


def test_baselines_and_sweep_in_one_command(made: Path, tmp_path: Path, run: Run, refuse: Run) -> None:
    evaluate = ["eval", made / "adapter", "--task", "jsonl", "--data", made / "test.jsonl", "--mode", "cloze"]
    out = run(*evaluate, "--baselines", "--supervision", made / "paths", "--sweep", "--output", tmp_path / "ev")
    report = json.loads((tmp_path / "ev" / "report.json").read_text())
    rows = {row["name"]: row for row in report["baselines"]["baselines"]}
    assert {"base", "random", "static, greedy", "early exit", "task router", "length router"} <= set(rows)
    assert all(name in out for name in rows)
    assert report["baselines"]["routed"]["value"] == report["routed"]["value"]
    assert rows["base"]["value"] == report["base"]["value"]
    controls = {point["control"] for point in report["sweep"]}
    assert controls == {"as trained", "depth control", "layer budget", "price"}
    assert (tmp_path / "ev" / "tradeoff.png").stat().st_size > 10_000
    assert "go together" in refuse(*evaluate, "--baselines")
    assert "go together" in refuse(*evaluate, "--supervision", made / "paths")
    # Baselines that are chosen on the questions they are tested on would be favoured.
    search = ["eval", made / "adapter", "--task", "jsonl", "--data", made / "train.jsonl", "--mode", "cloze"]
    assert "not tested" in refuse(*search, "--baselines", "--supervision", made / "paths")


def test_a_sweep_says_how_far_it_is(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ["eval", made / "adapter", "--task", "jsonl", "--data", made / "test.jsonl", "--mode", "cloze", "--limit",
               10, "--batch-size", 4, "--sweep", "--log", "json", "--output", tmp_path / "ev"]  # fmt: skip
    assert command(*sweep) == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    points = json.loads((tmp_path / "ev" / "report.json").read_text())["sweep"]
    for event in ("start", "end"):
        jobs = [line["job"] for line in lines if line["event"] == event]
        # The first point is the adapter as trained, which the evaluation has scored.
        assert jobs == ["evaluation", *(f"sweep, step {step}" for step in range(1, len(points)))]
    swept = [line for line in lines if line["job"] == "sweep, step 3" and line["event"] == "progress"]
    assert (swept[0]["done"], swept[-1]["done"], swept[-1]["total"]) == (0, 10, 10)


def test_a_budget_is_the_routers_and_not_the_baselines(made: Path, tmp_path: Path, run: Run) -> None:
    evaluate = ["eval", made / "adapter", "--task", "jsonl", "--data", made / "test.jsonl", "--mode", "cloze"]
    options = ["--limit", 10, "--layer-budget", 5, "--supervision", made / "paths", "--baselines"]
    run(*evaluate, *options, "--output", tmp_path / "ev")
    report = json.loads((tmp_path / "ev" / "report.json").read_text())
    assert report["layer_budget"] == 5
    assert max(map(int, report["passes"])) == 5
    rows = {row["name"]: row for row in report["baselines"]["baselines"]}
    assert rows["base"]["passes"] == 8
    assert rows["base"]["value"] == report["base"]["value"]
    assert report["baselines"]["routed"]["passes"] == pytest.approx(report["mean_passes"])


def test_every_way_of_supervision_trains(made: Path, tmp_path: Path, run: Run) -> None:
    evaluate = ["--task", "jsonl", "--data", made / "test.jsonl", "--mode", "cloze", "--limit", 10]
    learnt: dict[str, dict[str, torch.Tensor]] = {}
    for way in ("weighted", "effects", "price", "shortest"):
        run("train", made / "paths", "--output", tmp_path / way, "--labels", way, "--epochs", 2)
        facts = json.loads((tmp_path / way / "training.json").read_text())
        assert facts["supervision"]["labels"]["rule"] == way
        assert facts["metrics"]["train_examples"] >= facts["metrics"]["train_questions"]
        run("eval", tmp_path / way, *evaluate)
        learnt[way] = load_file(tmp_path / way / "adapter_model.safetensors")
    for one, other in itertools.combinations(learnt, 2):
        assert any(not torch.equal(learnt[one][name], learnt[other][name]) for name in learnt[one]), (one, other)
    several = json.loads((tmp_path / "weighted" / "training.json").read_text())["metrics"]
    assert several["train_examples"] > 2 * several["train_questions"]


def test_the_search_benchmark_counts_what_both_ways_scored(tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    options = ["--limit", "6", "--bundle", "4", "--simulations", "8", "--sample", "5", "--output", str(output)]
    code = command("bench", "search", *options)
    bench = json.loads(output.read_text())
    assert (code == 0) == all(item["met"] for item in bench["results"])
    assert list(bench["ratio"]) == ["cloze", "letter"]
    for item in bench["results"]:
        assert item["questions"] == 6
        assert 6 <= item["paths"] <= 6 * 9
        assert 4 <= item["sampled"] <= 6
        assert item["ratio"] == pytest.approx(item["paths_per_second"] / item["published_paths_per_second"])
        assert 0 < item["share_in_blocks"] + item["share_in_head"] < 1
        assert 0 < item["avoided"] < 1
        assert item["met"] == (item["ratio"] >= item["goal"] and item["share_in_blocks"] >= 0.9)


@pytest.mark.parametrize("option", [["--sweep"], ["--split", "test"], ["--baselines", "--supervision", "paths"]])
def test_options_that_the_harness_has_no_use_for(refuse: Run, option: list[str]) -> None:
    assert f"{option[0]} was given beside --lm-eval" in refuse("eval", "adapter", "--lm-eval", "arc_easy", *option)
