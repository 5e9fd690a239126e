"""Text along the routers' path: the prompt is worded as in training, and what is drawn follows temperature and seed."""

from collections import Counter
from typing import Any

import pytest
import torch
from peft import get_peft_model
from test_scoring import tiny_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from unrolled import tiny_model, unrolled

from drllm_adapter import DrLLMConfig, DrLLMError, last_decisions
from drllm_adapter.tasks import Question, build_prompt
from drllm_adapter.workflow.generate import generate_text

BASE = tiny_model("llama", 4)
PROMPT = "w5 w6 w7 w8"
# As templates of reasoning models have it: thinking is on unless it is told not to be.
TEMPLATE = (
    "{% for m in messages %}w50 {{ m.content }} w51{% endfor %}{% if add_generation_prompt %} w52{% endif %}"
    "{% if enable_thinking is not defined or enable_thinking %} w53{% endif %}"
)


@pytest.fixture(scope="module")
def model() -> Any:
    """Routers that decide differently for different prompts."""
    model = get_peft_model(tiny_model("llama", 4), DrLLMConfig()).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "drllm_router" in name and name.endswith("up.weight"):
                parameter.normal_(std=5.0)
    return model


def tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """One that begins a text with w60, unless it is told to add nothing."""
    made = tiny_tokenizer()
    made.backend_tokenizer.post_processor = TemplateProcessing(single="w60 $A", special_tokens=[("w60", 60)])
    made.chat_template = template
    return made


def read_by(model: Any, *arguments: Any, **options: Any) -> list[int]:
    """The tokens that `generate_text` puts before the model."""
    read: list[torch.Tensor] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, args: read.append(args[0]))
    try:
        generate_text(model, *arguments, max_new_tokens=1, **options)
    finally:
        hook.remove()
    ids: list[int] = read[0][0].tolist()
    return ids


def test_a_chat_is_worded_as_in_training(model: Any) -> None:
    chat = tokenizer(TEMPLATE)
    trained = build_prompt(Question("q", "jsonl", "q", None, "w1", prompt=PROMPT), "free", chat)
    assert trained.text == f"w50 {PROMPT} w51 w52"
    for option in (None, "chat"):
        assert read_by(model, chat, PROMPT, wording=option) == [50, 5, 6, 7, 8, 51, 52]
    for given, option in ((chat, "plain"), (tokenizer(None), None), (tokenizer(None), "plain")):
        assert read_by(model, given, PROMPT, wording=option) == [60, 5, 6, 7, 8]
    with pytest.raises(DrLLMError, match="chat template"):
        generate_text(model, tokenizer(None), PROMPT, wording="chat")


def test_greedy_text_is_that_of_the_unrolled_model(model: Any) -> None:
    found = generate_text(model, tiny_tokenizer(), PROMPT, max_new_tokens=5)
    assert found.decisions == tuple(last_decisions(model)[0].tolist())
    assert set(found.decisions) != {1}
    path, ids = unrolled(BASE, list(found.decisions)), [5, 6, 7, 8]
    with torch.no_grad():
        for _ in range(5):
            ids.append(int(path(torch.tensor([ids])).logits[0, -1].argmax()))
    assert found.text == " ".join(f"w{number}" for number in ids[4:])
    assert (found.prompt, found.tokens) == (PROMPT, 5)
    assert generate_text(model, tiny_tokenizer(), PROMPT, max_new_tokens=5, seed=9) == found


def test_what_is_drawn_follows_the_temperature(model: Any) -> None:
    """The first token's frequencies over many seeds against the softmax of the unrolled model's logits."""
    words, seeds = tiny_tokenizer(), range(300)
    greedy = generate_text(model, words, PROMPT, max_new_tokens=1)
    with torch.no_grad():
        logits = unrolled(BASE, list(greedy.decisions))(torch.tensor([[5, 6, 7, 8]])).logits[0, -1].double()
    top = int(logits.argmax())
    for temperature in (0.5, 2.0):
        drawn = Counter(
            generate_text(model, words, PROMPT, max_new_tokens=1, temperature=temperature, seed=seed).text
            for seed in seeds
        )
        # transformers draws from the likeliest 50 unless a model's generation settings say otherwise.
        expected = float((logits / temperature).topk(50).values.softmax(0)[0])
        error = (expected * (1 - expected) / len(seeds)) ** 0.5
        assert 0.05 < expected < 0.95
        assert drawn[f"w{top}"] / len(seeds) == pytest.approx(expected, abs=4 * error)


def test_the_seed_settles_what_is_drawn(model: Any) -> None:
    def draw(seed: int) -> str:
        return generate_text(model, tiny_tokenizer(), PROMPT, max_new_tokens=6, temperature=1.5, seed=seed).text

    texts = [draw(seed) for seed in range(6)]
    assert len(set(texts)) > 3
    assert [draw(seed) for seed in range(6)] == texts
