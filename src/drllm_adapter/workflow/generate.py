"""Text in, text out, with the path that the routers chose."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..adapter.speculation import Speculation, last_speculation, speculate
from ..adapter.steering import last_decisions, set_depth_control, set_layer_budget
from ..decisions import Decisions, passes
from ..errors import DrLLMError
from ..tasks import chat_text


@dataclass(frozen=True)
class Generated:
    """What came of a prompt.

    Attributes:
        text: the answer alone.
        decisions: those of the prompt.
        tokens: how many were generated.
        seconds: that this took, the prompt's pass included.
        speculation: what was drafted and accepted, where the answer is the base model's; None otherwise.
    """

    prompt: str
    text: str
    decisions: Decisions
    tokens: int
    seconds: float
    speculation: Speculation | None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "passes": passes(self.decisions)}

    def summary(self) -> str:
        """One line on drafted tokens and speed, for people."""
        speed = f"{self.tokens / max(self.seconds, 1e-9):.1f} tokens/s"
        done = self.speculation
        if done is None:
            return speed
        if not done.drafted:
            return (
                f"no token drafted, since a route of {sum(map(bool, self.decisions))} blocks saves too little; {speed}"
            )
        return (
            f"{done.accepted} of {done.drafted} drafted tokens accepted, {done.tokens / done.verifications:.2f} tokens "
            f"a pass of all blocks; {speed}"
        )


@torch.inference_mode()
def generate_text(
    model: Any,
    tokenizer: Any,
    prompt: str,
    *,
    chat: bool | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    depth_control: float | None = None,
    layer_budget: int | None = None,
    lossless: bool = False,
    seed: int = 0,
) -> Generated:
    """Answer one prompt.

    Args:
        model: with an active router adapter.
        chat: put the prompt into the chat template; None does so where there is one.
        temperature: 0 is greedy.
        depth_control, layer_budget: None leaves the adapter as it is.
        lossless: answer as the base model would; the route only drafts.

    Raises:
        DrLLMError: a chat template is asked for and there is none; the prompt leaves no room in the model's positions.
    """
    inputs = prompt_inputs(model, tokenizer, prompt, chat=chat, max_new_tokens=max_new_tokens)
    length = inputs["input_ids"].shape[1]
    if depth_control is not None:
        set_depth_control(model, depth_control)
    if layer_budget is not None:
        set_layer_budget(model, layer_budget)
    sampling: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:
        sampling["temperature"] = temperature
        torch.manual_seed(seed)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if lossless:
        sampling["custom_generate"] = speculate
    start = time.perf_counter()
    output = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        pad_token_id=padding,
        **sampling,
    )
    answer = output[0, length:].cpu()  # waits for the device
    seconds = time.perf_counter() - start
    return Generated(
        prompt=prompt,
        text=tokenizer.decode(answer, skip_special_tokens=True),
        decisions=tuple(last_decisions(model)[0].tolist()),
        tokens=len(answer),
        seconds=seconds,
        speculation=last_speculation(model) if lossless else None,
    )


def prompt_inputs(
    model: Any, tokenizer: Any, prompt: str, *, chat: bool | None = None, max_new_tokens: int = 0
) -> dict[str, torch.Tensor]:
    """A prompt as the model takes it, `[1, tokens]`; see `generate_text`."""
    templated = None if chat is False else chat_text(prompt, tokenizer)
    if chat and templated is None:
        raise DrLLMError("a chat needs a tokenizer with a chat template, but this one has none; leave out --chat.")
    # A template's text has its special tokens already.
    inputs = tokenizer(
        prompt if templated is None else templated, add_special_tokens=templated is None, return_tensors="pt"
    )
    length = inputs["input_ids"].shape[1]
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if length == 0 or (limit is not None and length + max_new_tokens > limit):
        raise DrLLMError(
            f"the prompt must have at least one token and, with {max_new_tokens} tokens to generate, fit the model's "
            f"{limit} positions, but it has {length}; shorten it or lower --max-new-tokens."
        )
    return {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
