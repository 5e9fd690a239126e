"""Every example as its docstring says, on the embedded model: the same script, other arguments."""

import ast
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from drllm_adapter import DrLLMConfig
from drllm_adapter.demo import BASE
from drllm_adapter.demo.khop import generate
from drllm_adapter.models.loading import load_base, route_base
from drllm_adapter.scoring.plain import Scorer
from drllm_adapter.scoring.shared_prefix import SharingScorer, score_paths
from drllm_adapter.tasks import build_prompts, load_questions
from drllm_adapter.workflow import evaluate_adapter, search_paths

EXAMPLES = Path(__file__).parents[2] / "examples"
LONG = ("train_demo", "train_robust", "evidence_", "fidelity_")
SCRIPTS = sorted(path for path in EXAMPLES.glob("*.py") if not path.name.startswith(LONG))


Run = Callable[..., str]


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a script with arguments in the folder, as `python` does, and give what it prints."""

    def call(script: str, *arguments: Any) -> str:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions in train.jsonl, test.jsonl and, with free answers, free.jsonl; routers with random weights."""
    folder = tmp_path_factory.mktemp("examples")
    for name, count, seed in (("train", 30, 0), ("test", 20, 1)):
        asked = [{**item, "prompt": item["question"]} for item in generate(count, seed)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, asked)))
    free = [{"prompt": item["question"], "answer": item["choices"][item["answer"]], "level": item["level"]}
            for item in generate(36, 2)]  # fmt: skip
    (folder / "free.jsonl").write_text("\n".join(map(json.dumps, free)))
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(BASE), DrLLMConfig())
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "drllm_router" in name and name.endswith("up.weight"):
                parameter.normal_(std=5.0)
    model.save_pretrained(str(folder / "routers"))
    return folder


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_an_example_is_one_screen_and_says_how_to_run_it(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    assert f"    python examples/{path.name}" in (ast.get_docstring(ast.parse(text), clean=False) or "")


def test_quickstart(folder: Path, run: Run) -> None:
    question = generate(1, 5, [2])[0]["question"]
    out = run("quickstart.py", "routers", question, "--max-new-tokens", 1, "--budget", 5)
    answer, passes = out.strip().splitlines()[-2:]
    assert answer.strip() in "abcdefgh"
    found = re.fullmatch(r"(\d+) block passes for 8 blocks: (\[.*\])", passes)
    assert found is not None
    assert sum(json.loads(found[2])) == int(found[1]) <= 5


def test_llama_arc(folder: Path, run: Run) -> None:
    run("llama_arc.py", "--model", BASE, "--train-data", "train.jsonl", "--test-data", "test.jsonl", "--mode", "cloze",
        "--simulations", 20, "--epochs", 2, "--output", "arc")  # fmt: skip
    report = json.loads((folder / "arc" / "adapter" / "evaluation" / "report.json").read_text())
    card = ModelCard.load(folder / "arc" / "adapter" / "README.md")
    assert report["routed"]["of"] == 20
    assert card.data.eval_results[0].metric_value == pytest.approx(report["routed"]["value"], abs=1e-4)


def test_qwen_dart(folder: Path, run: Run) -> None:
    run("qwen_dart.py", "--model", BASE, "--task", "jsonl", "--data", "free.jsonl", "--questions", 24,
        "--test-questions", 12, "--simulations", 15, "--epochs", 2, "--budgets", 6, "--output", "dart")  # fmt: skip
    adapter = folder / "dart" / "adapter"
    reports = {name: json.loads((adapter / name / "report.json").read_text())
               for name in ("evaluation", "evaluation-budget-6")}  # fmt: skip
    assert max(map(int, reports["evaluation-budget-6"]["passes"])) <= 6
    assert reports["evaluation"]["mode"] == "free"
    results = ModelCard.load(adapter / "README.md").data.eval_results
    assert [result.metric_type for result in results] == ["accuracy", "mean_passes"] * 2


def test_train_with_trainer(folder: Path, run: Run) -> None:
    """The answers become likelier along the routers' paths, which stay as they are."""
    run("train_with_trainer.py", "routers", "train.jsonl", "--steps", 30, "--batch-size", 10, "--output", "lora-below")
    prompts = build_prompts(load_questions("jsonl", str(folder / "train.jsonl")), "cloze")
    found = []
    for lora in (None, folder / "lora-below"):
        base, tokenizer = load_base(str(BASE))
        below = base if lora is None else PeftModel.from_pretrained(base, str(lora))
        model = PeftModel.from_pretrained(below, str(folder / "routers"), adapter_name="routers").eval()
        scores = Scorer(model, tokenizer).score(prompts)
        assert any(score.decisions != (1,) * 8 for score in scores)
        found.append(np.mean([np.log(score.probability) for score in scores]))
    before, after = found
    assert after > before + 0.03


def test_help_needs_no_extra_and_says_something(tmp_path: Path) -> None:
    """Of all examples in one process, with the optional packages hidden."""
    code = (
        "import contextlib, io, json, runpy, sys\nfrom pathlib import Path\n"
        "for name in ('lm_eval', 'math_verify'): sys.modules[name] = None\n"
        "folder, said = Path(sys.argv[1]), {}\nsys.path.insert(0, str(folder))\n"
        "for script in sorted(folder.glob('*.py')):\n"
        "    sys.argv = [script.name, '--help']\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):\n"
        "        runpy.run_path(str(script), run_name='__main__')\n"
        "    said[script.name] = out.getvalue()\n"
        "print(json.dumps(said))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(EXAMPLES)], check=True, capture_output=True, text=True,
                          cwd=tmp_path)  # fmt: skip
    said = json.loads(done.stdout.splitlines()[-1])
    assert len(said) > 10
    assert [name for name, text in said.items() if not text.startswith("usage:")] == []


def test_a_shell_script_says_what_it_takes() -> None:
    done = subprocess.run(["bash", str(EXAMPLES / "multi_gpu_search.sh")], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")


def test_train_robust_base(folder: Path, run: Run) -> None:
    """An ordinary model with the base's layout comes out, and paths with skipped blocks cost it less than before."""
    run("train_robust_base.py", BASE, "train.jsonl", "--output", "robust", "--mode", "cloze", "--edits", 3,
        "--epochs", 12, "--learning-rate", 2e-3)  # fmt: skip
    assert set(load_file(folder / "robust" / "model.safetensors")) == set(load_file(BASE / "model.safetensors"))
    prompts = build_prompts(load_questions("jsonl", str(folder / "train.jsonl")), "cloze")
    skipping = [tuple(int(block != skipped) for block in range(8)) for skipped in range(8)]
    likelihoods = []
    for name in (str(BASE), str(folder / "robust")):
        base, tokenizer = load_base(name)
        scores = score_paths(SharingScorer(route_base(base), tokenizer), prompts, [skipping] * len(prompts))
        likelihoods.append(np.mean([np.log(score.probability) for of_prompt in scores for score in of_prompt]))
    assert likelihoods[1] > likelihoods[0] + 0.1


def test_mix_with_lora(folder: Path, run: Run) -> None:
    base = AutoModelForCausalLM.from_pretrained(BASE)
    lora = get_peft_model(base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"))
    lora.save_pretrained(str(folder / "lora"))
    question = generate(1, 5, [2])[0]["question"]
    out = run("mix_with_lora.py", "lora", "routers", question, "--max-new-tokens", 3)
    both, alone = out.strip().splitlines()[-2:]
    # The words of the model, and behind those of the routed one the decisions.
    assert re.fullmatch(r"LoRA and routers: .*\[([012], ){7}[012]\]", both)
    assert re.fullmatch(r"LoRA alone: +\S.*", alone)
    assert len(alone.partition(":")[2].split()) <= 3


def test_evaluate_lm_eval(folder: Path, run: Run) -> None:
    pytest.importorskip("lm_eval")
    task = {
        "task": "local_khop",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "test.jsonl")}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_target": "answer",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "tasks").mkdir()
    (folder / "tasks" / "local_khop.yaml").write_text(json.dumps(task))
    run("evaluate_lm_eval.py", "routers", "--tasks", task["task"], "--include-path", "tasks", "--output", "r.json")
    results = json.loads((folder / "r.json").read_text())
    report = evaluate_adapter(str(folder / "routers"), load_questions("jsonl", str(folder / "test.jsonl")), None,
                              mode="cloze")  # fmt: skip
    for name, share in (("base", report.base), ("routed", report.routed)):
        assert results[name]["local_khop"]["acc,none"] == pytest.approx(share.value)


@pytest.mark.slow
def test_multi_gpu_search(folder: Path) -> None:
    """Two processes without a GPU give the rows of one."""
    from drllm_adapter.search import SearchConfig
    from drllm_adapter.supervision import read_rows

    arguments = ["--task", "jsonl", "--data", "train.jsonl", "--mode", "cloze", "--simulations", "10", "--bundle", "4"]
    # accelerate lies beside the Python that runs the tests.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["bash", str(EXAMPLES / "multi_gpu_search.sh"), str(BASE), "many", *arguments, "--device", "cpu"],
        cwd=folder, check=True, env={**os.environ, "PATH": path, "PROCESSES": "2"},
    )  # fmt: skip
    search_paths(str(BASE), load_questions("jsonl", str(folder / "train.jsonl")), folder / "one", mode="cloze",
                 config=SearchConfig(simulations=10), bundle=4, device="cpu")  # fmt: skip
    assert read_rows(folder / "many") == read_rows(folder / "one")
