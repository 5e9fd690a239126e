"""Scores equal those of the unrolled model, one prompt and one answer at a time, in one plain forward pass."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from unrolled import VOCABULARY, tiny_model, unrolled

from drllm_adapter import DrLLMConfig, DrLLMError
from drllm_adapter.scoring.continuations import Predicted, are_greedy, log_likelihoods
from drllm_adapter.scoring.plain import Scorer
from drllm_adapter.tasks import Prompt

BLOCKS = 4


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Words w0 to w60, one token each."""
    vocabulary = {f"w{number}": number for number in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", pad_token="w0")


BASE = tiny_model("llama", BLOCKS)
ROUTED = get_peft_model(copy.deepcopy(BASE), DrLLMConfig()).eval()
TOKENIZER = tiny_tokenizer()

words = st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=8).map(lambda ids: " ".join(f"w{i}" for i in ids))
answers = st.lists(words.map(lambda text: f" {text}"), min_size=2, max_size=4)
paths = st.tuples(*[st.integers(0, 2)] * BLOCKS).filter(any)


@st.composite
def choice_prompts(draw: st.DrawFn) -> Prompt:
    continuations = tuple(draw(answers))
    answer = draw(st.integers(0, len(continuations) - 1))
    return Prompt(draw(words), False, continuations, answer, "cloze", 4)


@torch.no_grad()
def log_likelihood(model: Any, prompt: str, continuation: str) -> float:
    before = TOKENIZER(prompt)["input_ids"]
    after = TOKENIZER(continuation)["input_ids"]
    logits = model(torch.tensor([before + after])).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(before) - 1 + place, token]) for place, token in enumerate(after))


@settings(max_examples=30)
@given(pairs=st.lists(st.tuples(choice_prompts(), paths), min_size=1, max_size=5), batch_size=st.integers(1, 4))
def test_choices(pairs: list[tuple[Prompt, tuple[int, ...]]], batch_size: int) -> None:
    scorer = Scorer(ROUTED, TOKENIZER, batch_size=batch_size)
    scores = scorer.score([prompt for prompt, _ in pairs], [path for _, path in pairs])
    for score, (prompt, path) in zip(scores, pairs, strict=True):
        model = unrolled(BASE, list(path))
        sums = torch.tensor([log_likelihood(model, prompt.text, text) for text in prompt.continuations])
        expected = float(sums.softmax(0)[prompt.answer])
        assert score.decisions == path
        assert score.probability == pytest.approx(expected, abs=2e-4)
        if (sums - sums[sums.argmax()]).abs().sort().values[1] > 1e-3:
            assert score.correct == (int(sums.argmax()) == prompt.answer)


@settings(max_examples=15)
@given(prompt=words, answer=words, path=paths)
def test_free_answers(prompt: str, answer: str, path: tuple[int, ...]) -> None:
    model = unrolled(BASE, list(path))
    ids = torch.tensor([TOKENIZER(prompt)["input_ids"]])
    tokens = model.generate(ids, max_new_tokens=3, do_sample=False, use_cache=False)[0, ids.shape[1] :]
    generated = TOKENIZER.decode(tokens, skip_special_tokens=True)
    assume(generated)
    asked = [Prompt(prompt, False, (f" {text}",), text, "free", 3) for text in (answer, generated)]
    scores = Scorer(ROUTED, TOKENIZER).score(asked, [path, path])
    assert [score.text for score in scores] == [generated, generated]
    assert scores[1].correct
    assert scores[0].correct == (answer == generated)
    length = len(TOKENIZER(answer)["input_ids"])
    expected = torch.tensor(log_likelihood(model, prompt, f" {answer}") / length).exp()
    assert scores[0].probability == pytest.approx(float(expected), abs=2e-4)


def test_routers_decide_when_nothing_is_forced() -> None:
    model = copy.deepcopy(ROUTED)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "drllm_router" in name and name.endswith("up.weight"):
                parameter.normal_(std=5.0)
    prompts = [Prompt(f"w{n} w{n + 1} w{2 * n}", False, (" w1", " w2 w3"), 0, "cloze", 4) for n in range(1, 9)]
    scorer = Scorer(model, TOKENIZER)
    routed = scorer.score(prompts)
    assert len({score.decisions for score in routed}) > 1
    assert scorer.score(prompts, [score.decisions for score in routed]) == routed


def test_a_prompt_that_does_not_fit_is_refused() -> None:
    fits = Prompt(" ".join(["w1"] * 60), False, (" w1 w2 w3 w4 w5", " w1"), 0, "cloze", 4)
    Scorer(ROUTED, TOKENIZER).score([fits], [(1,) * BLOCKS])
    longer = Prompt(fits.text + " w1", False, fits.continuations, 0, "cloze", 4)
    with pytest.raises(DrLLMError, match=r"64 positions.*needs 65"):
        Scorer(ROUTED, TOKENIZER).score([longer], [(1,) * BLOCKS])
    with pytest.raises(DrLLMError, match="at least one token"):
        Scorer(ROUTED, TOKENIZER).score([Prompt("", False, (" w1",), 0, "cloze", 4)], [(1,) * BLOCKS])


def test_what_is_read_of_a_batch_is_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Continuations of unlike lengths, in one or two parts: one transfer for all, and the sums are their own."""
    generator = torch.Generator().manual_seed(0)
    lengths = [[1], [1, 3], [1, 1], [1, 5]]
    predicted = [
        Predicted(0, list(range(sum(parts))), [torch.randn(part, 11, generator=generator) for part in parts])
        for parts in lengths
    ]
    predicted.append(Predicted(0, [4, 2], [torch.eye(11)[[4]], torch.eye(11)[[2]]]))
    expected = [
        float(item.log_probabilities().double().gather(1, torch.tensor(item.tokens)[:, None]).sum())
        for item in predicted
    ]
    reads = []
    read = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: reads.append(tensor.shape) or read(tensor))
    monkeypatch.setattr(torch.Tensor, "__float__", None)
    monkeypatch.setattr(torch.Tensor, "__bool__", None)
    assert log_likelihoods(predicted) == pytest.approx(expected, abs=1e-4)
    assert are_greedy(predicted)[-1]
    assert len(reads) == 2
    assert log_likelihoods([]) == []
