"""Routers that learn critical prices, and the adapter that comes of prompts without answers."""

import json
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from test_refine import BLOCKS, TOKENIZER, WINDOWS
from unrolled import tiny_model

from drllm_adapter import DrLLMConfig, DrLLMError
from drllm_adapter.adapter.router import Router
from drllm_adapter.scoring.plain import Scorer
from drllm_adapter.scoring.references import add_references
from drllm_adapter.scoring.shared_prefix import SharingScorer
from drllm_adapter.tasks import Prompt
from drllm_adapter.training import load_weights_into
from drllm_adapter.training.skips import SkipTraining, _as_routers, _train, learn_skips, loss_of


def test_a_router_skips_where_the_critical_price_that_it_learnt_is_below_the_price() -> None:
    """Standardised inputs, thresholds and executing routers of other blocks, all in the weights of plain routers."""
    torch.manual_seed(0)
    config = SkipTraining(epochs=60, batch_size=32, learning_rate=1e-2, dropout=0.0, weight_decay=0.0, router_width=16)
    features = 3 + 5 * torch.randn(2, 200, WINDOWS, 6)
    used = torch.full((200,), WINDOWS)
    # Block 4's price depends on what its router reads, block 1's on nothing.
    targets = torch.stack([0.05 * torch.exp(0.3 * (features[0, :, :, 2].mean(1) - 3)), torch.full((200,), 0.02)], 1)
    learnt = _train(features, used, targets.log(), config)
    for price in (0.03, 0.05, 0.08):
        stack = _as_routers(learnt, [4, 1], [0, 1, 4], price, 6, config)
        decided = {}
        for place, block in enumerate((0, 1, 4)):
            router = Router(6, 16)
            router.load_state_dict({name.replace("_", "."): value[place] for name, value in stack.items()})
            read = features[0 if block == 4 else 1]
            decided[block] = router(read, torch.full((200, WINDOWS), 1 / WINDOWS)).argmax(-1)
        assert (decided[0] == 1).all()
        assert (decided[1] == (0 if price > 0.02 else 1)).all()
        wanted = torch.where(targets[:, 0] < price, 0, 1)
        assert (decided[4] == wanted).float().mean() > 0.9


def test_learning_from_prompts_alone() -> None:
    """Two kinds of prompts; the routers leave out no more, at the same price, than what keeps the base's own text."""
    base = tiny_model("llama", BLOCKS)
    with torch.no_grad():
        for name in ("o_proj", "down_proj"):  # a block that hardly does anything
            for parameter, value in base.model.layers[1].named_parameters():
                if name in parameter:
                    value.mul_(0.01)
    model = get_peft_model(base, DrLLMConfig(num_windows=WINDOWS, rms_norm=True, router_width=8)).eval()
    texts = [f"w{first} w{second} w{second + 1}" for first in (1, 2, 3) for second in range(4, 18)]
    prompts = add_references(Scorer(model, TOKENIZER), [Prompt(text, False, (), "", "self", 6) for text in texts])
    scorer = SharingScorer(model, TOKENIZER)
    config = SkipTraining(router_width=8, epochs=10, batch_size=16)
    weights = learn_skips(scorer, prompts, texts, range(BLOCKS), 0.2, config, num_windows=WINDOWS)
    load_weights_into(model, weights, range(BLOCKS))
    found = Scorer(model, TOKENIZER).score(prompts)
    assert all(score.decisions[1] == 0 for score in found)
    assert sum(sum(score.decisions) for score in found) < BLOCKS * len(found)
    assert sum(map(loss_of, found)) / len(found) < 0.25


def test_prompts_with_answers_are_refused() -> None:
    model = get_peft_model(tiny_model("llama", BLOCKS), DrLLMConfig()).eval()
    prompt = Prompt("w1 w2", False, ("w3", "w4"), 0, "cloze", 4)
    with pytest.raises(DrLLMError, match="--mode self"):
        learn_skips(SharingScorer(model, TOKENIZER), [prompt] * 4, list("abcd"), range(BLOCKS), 0.1)


def test_the_command_makes_a_bounded_adapter_of_a_file_of_prompts(tmp_path: Path) -> None:
    from drllm_adapter.cli.commands import app
    from drllm_adapter.demo import BASE
    from drllm_adapter.demo.khop import generate

    prompts = "".join(json.dumps({"prompt": item["question"]}) + "\n" for item in generate(24, seed=5))
    (tmp_path / "prompts.jsonl").write_text(prompts)
    arguments = ["refine", str(BASE), "--data", str(tmp_path / "prompts.jsonl"), "--mode", "self", "--max-loss", "0",
                 "--max-new-tokens", "2", "--output", str(tmp_path / "adapter"), "--dtype", "float32"]  # fmt: skip
    app(arguments, standalone_mode=False)
    record = json.loads((tmp_path / "adapter" / "training.json").read_text())
    assert record["supervision"]["mode"] == "self"
    assert record["held_out"]["max_loss"] == 0
    assert record["held_out"]["loss"][2] <= 0
    assert not (tmp_path / "adapter" / "start.safetensors").exists()
    assert (tmp_path / "adapter" / "curves.png").stat().st_size > 0
