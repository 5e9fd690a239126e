"""`drllm bench adapter` measures what it says: the routed and the plain model, on the prompts, with their passes."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from drllm_adapter import force_decisions, last_decisions
from drllm_adapter.adapter.layer import RoutedLayer
from drllm_adapter.bench import adapter as bench
from drllm_adapter.bench.models import without_routers
from drllm_adapter.cli import main
from drllm_adapter.demo import BASE
from drllm_adapter.models.loading import load_base, route_base
from drllm_adapter.tasks import build_prompts, load_questions

QUESTIONS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the demo model whose decisions differ between prompts."""
    base, _ = load_base(str(BASE))
    model = route_base(base)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "drllm_router" in name and name.endswith("up.weight"):
                parameter.normal_(std=5.0)
    folder = tmp_path_factory.mktemp("speed") / "adapter"
    model.save_pretrained(folder)
    return folder


def test_the_other_side_is_the_plain_base(folder: Path) -> None:
    base, _ = load_base(str(BASE))
    routed = route_base(base)
    plain = without_routers(routed)
    assert not any(isinstance(module, RoutedLayer) for module in plain.modules())
    assert any(isinstance(module, RoutedLayer) for module in routed.modules())
    ids = torch.arange(10, 20)[None]
    fresh, _ = load_base(str(BASE))
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, fresh(ids).logits)
        routed(ids)
    assert last_decisions(routed).tolist() == [[1] * 8]


def test_passes_are_those_of_the_prompts_one_by_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "bench.json"
    command = ["drllm", "bench", "adapter", folder, "--task", "khop", "--mode", "cloze", "--limit", QUESTIONS,
               "--batch-sizes", "1,4", "--repetitions", 3, "--decode-tokens", 2, "--output", output]  # fmt: skip
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    from drllm_adapter.models.loading import load_routed

    model, tokenizer = load_routed(str(folder))
    rows = []
    for prompt in build_prompts(load_questions("khop", limit=QUESTIONS), "cloze", tokenizer):
        with torch.no_grad():
            model(torch.tensor([tokenizer(prompt.text)["input_ids"]]))
        rows.append(last_decisions(model)[0])
    alone, together = json.loads(output.read_text())["results"]
    decisions = torch.stack(rows)
    mean = int(decisions.sum()) / QUESTIONS
    assert alone["mean_passes"] == together["mean_passes"] == alone["batch_passes"] == pytest.approx(mean)
    of_batches = [int(part.amax(dim=0).sum()) for part in decisions.split(4)]
    assert together["batch_passes"] == pytest.approx(sum(of_batches) / 2)
    assert alone["passes_ratio"] == pytest.approx(8 / mean)
    for item in (alone, together):
        assert item["tokens_per_second"]["routed"] == pytest.approx(QUESTIONS * 2 / item["decode"]["seconds"])
        assert min(*item["prefill_seconds"].values(), item["prefill"]["ratio"], item["decode"]["ratio"]) > 0


def test_decoding_continues_the_prompts(folder: Path) -> None:
    """The tokens that are timed are those that each prompt gets alone and without a cache, whatever the padding."""
    from drllm_adapter.models.loading import load_routed

    model, tokenizer = load_routed(str(folder))
    prompts = ["a>b from a 1 hops:", "d>g a>f h>d f>c g>a b>h c>e e>b from a 3 hops:"]
    encoded = [tokenizer(text)["input_ids"] for text in prompts]
    expected = []
    with torch.no_grad():
        for ids in encoded:
            tokens, decisions = list(ids), None
            for _ in range(4):
                with nullcontext() if decisions is None else force_decisions(model, decisions):
                    logits = model(torch.tensor([tokens]), use_cache=False).logits
                decisions = last_decisions(model)
                tokens.append(int(logits[0, -1].argmax()))
            expected.append(tokens[len(ids) :])
    run = bench._Run(model, [encoded])
    seen: list[list[int]] = []
    handle = model.get_base_model().register_forward_hook(
        lambda _module, _args, output: seen.append(output.logits[:, -1].argmax(-1).tolist())
    )
    run.prefill()
    run.decode(3)
    run.decode(3)  # the first time leaves nothing behind in the caches
    handle.remove()
    assert [list(row) for row in zip(*seen[:4], strict=True)] == expected
    assert seen[4:] == seen[1:4]
