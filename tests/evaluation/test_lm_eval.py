"""lm-evaluation-harness with routers: every request is routed on its context alone, whatever the batch."""

import copy
import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
import torch
from commands import command
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from unrolled import VOCABULARY, tiny_model, unrolled

import drllm_adapter
from drllm_adapter import DrLLMConfig, DrLLMError
from drllm_adapter.demo import BASE as DEMO
from drllm_adapter.demo.khop import generate
from drllm_adapter.evaluation.lm_eval import Request, evaluate_with_harness, score_requests
from drllm_adapter.models.loading import load_base, load_routed

BASE = tiny_model("llama", 4)
tokens = st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=6)
requests = st.lists(st.tuples(st.none(), tokens, tokens), min_size=1, max_size=6)


def with_random_routers(base: Any, seed: int = 0) -> Any:
    """Routers that decide differently for different prompts."""
    model = get_peft_model(base, DrLLMConfig()).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "drllm_router" in name and name.endswith("up.weight"):
                parameter.normal_(std=5.0)
    return model


ROUTED = with_random_routers(copy.deepcopy(BASE))


@torch.no_grad()
def expected(request: Request) -> tuple[float, bool]:
    """One request by the unrolled model of the route that its context takes alone."""
    _, context, continuation = request
    ROUTED(torch.tensor([context]))
    model = unrolled(BASE, drllm_adapter.last_decisions(ROUTED)[0].tolist())
    logits = model(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1].double().log_softmax(-1)
    likelihood = sum(float(row[token]) for row, token in zip(logits, continuation, strict=True))
    return likelihood, logits.argmax(-1).tolist() == continuation


@settings(max_examples=25)
@given(asked=requests, again=st.lists(tokens, max_size=3), batch_size=st.integers(1, 8))
def test_requests_against_the_unrolled_model(asked: list[Request], again: list[list[int]], batch_size: int) -> None:
    asked = asked + [(None, asked[0][1], continuation) for continuation in again]
    answers = score_requests(ROUTED, asked, 64, batch_size)
    for answer, request in zip(answers, asked, strict=True):
        likelihood, greedy = expected(request)
        assert answer[0] == pytest.approx(likelihood, abs=2e-3)
        assert answer[1] == greedy


def test_long_contexts_lose_their_beginning() -> None:
    context, continuation = list(range(1, 30)), [3, 4]
    short = score_requests(ROUTED, [(None, context[-7:], continuation)], 64, 1)
    assert score_requests(ROUTED, [(None, context, continuation)], 8, 1) == short


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions, a task file of the harness that asks them, and an adapter of the demo model."""
    folder = tmp_path_factory.mktemp("harness")
    lines = [json.dumps(item) for item in generate(40, 3)]
    (folder / "questions.jsonl").write_text("\n".join(lines))
    task = {
        "task": "local_khop",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "questions.jsonl")}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_target": "answer",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "tasks").mkdir()
    (folder / "tasks" / "local_khop.yaml").write_text(json.dumps(task))
    base, _ = load_base(str(DEMO))
    model = with_random_routers(base)
    model.save_pretrained(folder / "adapter")
    return folder


@pytest.fixture(scope="module")
def counted(folder: Path) -> tuple[float, float, float]:
    """Accuracy of base and routed and mean passes, by plain calls with one question each."""
    routed, tokenizer = load_routed(str(folder / "adapter"))
    base, _ = load_base(str(DEMO))
    right, passes = [0, 0], 0
    for item in generate(40, 3):
        ids = torch.tensor([tokenizer(item["question"])["input_ids"]])
        letters = tokenizer.convert_tokens_to_ids(item["choices"])
        for place, model in enumerate((base, routed)):
            with torch.no_grad():
                right[place] += int(model(ids).logits[0, -1][letters].argmax()) == item["answer"]
        passes += int(drllm_adapter.last_decisions(routed).sum())
    assert right[0] != right[1]
    return right[0] / 40, right[1] / 40, passes / 40


def test_drllm_eval(folder: Path, counted: tuple[float, float, float]) -> None:
    output = folder / "evaluation"
    evaluate = ["eval", folder / "adapter", "--lm-eval", "local_khop", "--include-path", folder / "tasks"]
    assert command(*evaluate, "--output", output) == 0
    report = json.loads((output / "report.json").read_text())
    (result,) = report["results"]
    assert (result["base"], result["routed"], report["mean_passes"]) == pytest.approx(counted)
    assert (result["task"], result["metric"], result["count"]) == ("local_khop", "acc", 40)
    low, high = result["interval"]
    assert low < result["difference"] < high


@pytest.mark.parametrize("through", ["drllm", "lm_eval"])
def test_the_harness_own_command(folder: Path, counted: tuple[float, float, float], through: str) -> None:
    output = folder / through
    asked = ["--model", "hf", "--model_args", f"pretrained={DEMO},peft={folder / 'adapter'}", "--tasks", "local_khop",
             "--include_path", str(folder / "tasks"), "--batch_size", "1", "--device", "cpu", "--output_path",
             str(output / "results.json")]  # fmt: skip
    if through == "drllm":
        assert command("lm-eval", *asked) == 0
    elif entry_points(group="torch.backends", name="drllm_adapter"):
        subprocess.run([sys.executable, "-m", "lm_eval", *asked], check=True, capture_output=True)
    else:
        pytest.skip("entry points are those of an installed package, but drllm-adapter is not installed")
    (results,) = output.glob("results*.json")
    assert json.loads(results.read_text())["results"]["local_khop"]["acc,none"] == pytest.approx(counted[1])


def test_models_without_routers_are_scored_as_ever(folder: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    base, tokenizer = load_base(str(DEMO))
    asked: list[Request] = [(None, [10, 11, 12], [13, 14]), (None, [20, 21], [5])]
    plain = HFLM(pretrained=base, tokenizer=tokenizer)._loglikelihood_tokens(asked, disable_tqdm=True)
    routed, _ = load_routed(str(folder / "adapter"))
    with routed.disable_adapter():
        same = HFLM(pretrained=routed, tokenizer=tokenizer)._loglikelihood_tokens(asked, disable_tqdm=True)
    assert [greedy for _, greedy in plain] == [greedy for _, greedy in same]
    assert [value for value, _ in plain] == pytest.approx([value for value, _ in same], abs=1e-4)


def test_what_cannot_run_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OwnTasks(lm_eval.tasks.TaskManager):
        """Without the harness' thousands of task files, which take seconds to list."""

        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs, include_defaults=False)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", OwnTasks)
    model, tokenizer = load_routed(str(folder / "adapter"))
    with pytest.raises(DrLLMError, match="'no_such_task' is neither"):
        evaluate_with_harness(model, tokenizer, ["no_such_task"])
    with pytest.raises(DrLLMError, match="--include-path must be a folder"):
        evaluate_with_harness(model, tokenizer, ["local_khop"], include_path=folder / "nowhere")
    broken = json.loads((folder / "tasks" / "local_khop.yaml").read_text())
    broken["dataset_kwargs"]["data_files"]["test"] = str(folder / "gone.jsonl")
    (folder / "broken").mkdir()
    (folder / "broken" / "local_khop.yaml").write_text(json.dumps(broken))
    with pytest.raises(DrLLMError, match="check their data"):
        evaluate_with_harness(model, tokenizer, ["local_khop"], include_path=folder / "broken")
