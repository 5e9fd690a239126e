"""Text in, text out, with the path that the routers chose."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from transformers import TextStreamer

from ..adapter.speculation import Speculation, last_speculation, speculate
from ..adapter.steering import last_decisions
from ..decisions import Decisions, execute_all, passes
from ..errors import DrLLMError
from ..tasks import chat_text

Conversation = Sequence[tuple[str, str]]
"""Turns as (role, text) pairs, the last one the user's."""


@dataclass(frozen=True)
class Generated:
    """What came of a prompt.

    Attributes:
        text: the answer alone.
        decisions: those of the prompt.
        tokens: how many were generated.
        seconds: that it took, the prompt included.
        speculation: what was drafted and accepted, where the answer is lossless; None otherwise.
    """

    prompt: str | Conversation
    text: str
    decisions: Decisions
    tokens: int
    seconds: float = field(compare=False)
    speculation: Speculation | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "passes": passes(self.decisions)}


@torch.inference_mode()
def generate_text(
    model: Any,
    tokenizer: Any,
    prompt: str | Conversation,
    *,
    wording: str | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    routed: bool = True,
    lossless: bool = False,
    streamer: TextStreamer | None = None,
) -> Generated:
    """Answer one prompt.

    Args:
        model: with an active router adapter.
        wording: "chat" puts the prompt into the chat template, "question" asks it as the cloze mode does, "plain" takes
            it as it is; None is the chat template where there is one, else plain.
        temperature: 0 is greedy.
        routed: False answers with the base model.
        lossless: answer as the base model would; the route only drafts.
        streamer: gets the tokens as they come.

    Raises:
        DrLLMError: a chat template is asked for and there is none; the prompt leaves no room in the model's positions.
    """
    inputs = prompt_inputs(model, tokenizer, prompt, wording=wording, max_new_tokens=max_new_tokens)
    length = inputs["input_ids"].shape[1]
    sampling: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:
        sampling["temperature"] = temperature
        torch.manual_seed(seed)
    if lossless and routed:
        sampling["custom_generate"] = speculate
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    began = time.perf_counter()
    with nullcontext() if routed else model.disable_adapter():
        output = model.generate(
            **inputs, max_new_tokens=max_new_tokens, pad_token_id=padding, streamer=streamer, **sampling
        )
    answer = output[0, length:]
    return Generated(
        prompt=prompt,
        text=tokenizer.decode(answer, skip_special_tokens=True),
        decisions=(
            tuple(last_decisions(model)[0].tolist())
            if routed
            else execute_all(model.config.get_text_config().num_hidden_layers)
        ),
        tokens=len(answer),
        seconds=time.perf_counter() - began,
        speculation=last_speculation(model) if lossless and routed else None,
    )


def prompt_inputs(
    model: Any, tokenizer: Any, prompt: str | Conversation, *, wording: str | None = None, max_new_tokens: int = 0
) -> dict[str, torch.Tensor]:
    """A prompt as the model takes it, `[1, tokens]`; see `generate_text`."""
    templated = chat_text(prompt, tokenizer) if wording in (None, "chat") else None
    if templated is None and (wording == "chat" or not isinstance(prompt, str)):
        raise DrLLMError(
            "a chat needs a tokenizer with a chat template, but this one has none; leave out --chat and "
            "--chat-template, and give prompts as texts."
        )
    text = templated or (f"Question: {prompt}\nAnswer:" if wording == "question" else prompt)
    # A template's text has its special tokens already.
    inputs = tokenizer(text, add_special_tokens=templated is None, return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if length == 0 or (limit is not None and length + max_new_tokens > limit):
        raise DrLLMError(
            f"the prompt must have at least one token and, with {max_new_tokens} tokens to generate, fit the model's "
            f"{limit} positions, but it has {length}; shorten it or ask for fewer tokens."
        )
    return {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
