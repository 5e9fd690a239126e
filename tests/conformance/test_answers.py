"""Answers are scored as the unrolled model predicts them in one plain forward pass, over unlike architectures."""

from typing import Any

import pytest
import torch
from peft import get_peft_model
from test_caches import TOLERANCE, base_and_routed, tokens, truth
from test_scoring import TOKENIZER
from tiny import tiny_model

from drllm_adapter import DrLLMConfig, last_decisions
from drllm_adapter.scoring.continuations import predict_continuations
from drllm_adapter.scoring.plain import Scorer
from drllm_adapter.scoring.shared_prefix import SharingScorer
from drllm_adapter.tasks import Prompt

PATHS = [(1, 0, 1, 1), (2, 1, 1, 0), (1, 1, 2, 1)]
STATES = ["mamba", "mamba2", "falcon_mamba", "jamba", "nemotron_h", "qwen3_next"]

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("forced", [True, False])
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "bloom", *STATES])
@torch.no_grad()
def test_continuations_of_several_tokens(model_type: str, forced: bool) -> None:
    """Not every base model can go on with several tokens at once: those that keep states run whole sequences."""
    routed = base_and_routed(model_type)[1]
    prompts = [tokens(length, seed=length).tolist() for length in (6, 4, 7)]
    continuations = [[tokens(length, seed=20 + length).tolist() for length in (1, 4, 2)] for _ in prompts]
    predicted, ran = predict_continuations(
        routed, prompts, continuations, padding=0, decisions=PATHS if forced else None
    )
    assert len(predicted) == 9
    assert not forced or ran == PATHS
    for row, prompt in enumerate(prompts):
        if not forced:
            routed(torch.tensor([prompt]))
            assert ran[row] == tuple(last_decisions(routed)[0].tolist())
        for item in predicted[3 * row : 3 * row + 3]:
            assert item.prompt == row
            whole = truth(model_type, ran[row])(torch.tensor([prompt + list(item.tokens)]), use_cache=False).logits[0]
            expected = whole[len(prompt) - 1 : -1]
            found = torch.cat(item.logits)
            assert (found - expected).norm() / expected.norm() < TOLERANCE


@pytest.mark.parametrize("letters", [True, False])
@pytest.mark.parametrize("model_type", ["llama", "bloom", "xglm", "falcon", "mamba", "jamba"])
def test_one_question_alone_along_several_paths(model_type: str, letters: bool) -> None:
    """A batch of one, whose masks and positions models may want for every row."""
    routed = get_peft_model(tiny_model(model_type), DrLLMConfig()).eval()
    answers = tuple(f" w{10 + n}" if letters else f" w{10 + n} w{20 + n}" for n in range(4))
    prompt = Prompt("w7 w3 w9 w12 w5 w8", False, answers, 1, "cloze", 4)
    found = SharingScorer(routed, TOKENIZER, notice=lambda text: None).begin([prompt]).score([0] * 3, PATHS)
    expected = Scorer(routed, TOKENIZER).score([prompt] * 3, PATHS)
    assert [score.probability for score in found] == pytest.approx([item.probability for item in expected], abs=1e-4)


@pytest.mark.parametrize("model_type", ["mpt", "bloom", *STATES])
def test_rows_that_blocks_follow_in_order_are_known(model_type: str) -> None:
    """Weights so small that a wrong state hardly matters."""
    base: Any = tiny_model(model_type)
    with torch.no_grad():
        for weight in base.parameters():
            weight.mul_(0.01)
    said: list[str] = []
    scorer = SharingScorer(get_peft_model(base, DrLLMConfig()).eval(), TOKENIZER, notice=said.append)
    scorer.begin([Prompt("w7 w8", False, (" w1 w2 w3", " w4 w5 w6"), 1, "cloze", 4)])
    assert len(said) == 1
    assert "order of a row" in said[0]


@pytest.mark.parametrize("length", [4, 5, 6, 9])
def test_windows_are_known_by_their_size(length: int) -> None:
    """Weights so small that masks hardly matter: what a window cuts is never tried, whatever was scored before."""
    base: Any = tiny_model("mistral", sliding_window=8)
    with torch.no_grad():
        for weight in base.parameters():
            weight.mul_(0.01)
    said: list[str] = []
    scorer = SharingScorer(get_peft_model(base, DrLLMConfig()).eval(), TOKENIZER, notice=said.append)
    answers = (" w1 w2 w3", " w4 w5 w6")
    prompt = Prompt(" ".join(f"w{7 + n}" for n in range(length)), False, answers, 1, "cloze", 4)
    scorer.begin([prompt])
    # The last token of an answer is only predicted.
    assert len(said) == (length + 2 > 8)
    assert all("looks back 8 tokens" in text for text in said)
