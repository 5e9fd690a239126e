"""Loading a base model or an adapter by name for the commands: refusals in one sentence, and the choice of a dtype."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from .adapter.config import DrLLMConfig
from .adapter.layer import RoutedLayer
from .adapter.stack import find_stack
from .errors import DrLLMError

_SAMPLES = 64
DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_base(name: str, *, dtype: str = "auto", device: str | None = None) -> tuple[Any, Any]:
    """A causal language model in evaluation mode, and its tokenizer.

    Args:
        name: a folder or a name on the Hub.
        dtype: "auto" is the checkpoint's own on a GPU; on the CPU, where half precision may be emulated, a float32
            checkpoint stays so and another runs in float32 or its own, whichever is faster here.
        device: None is the first GPU, or the CPU without one.

    Raises:
        DrLLMError: nothing loadable is there, the architecture is not one that routes exactly, or there is no such
            device.
    """
    if dtype not in DTYPES:
        raise DrLLMError(f"dtype must be one of {', '.join(DTYPES)}, but {dtype!r} was given; choose one of them.")
    place = _device(device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        with _without_progress_bar():
            model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    except DrLLMError:
        raise
    except Exception as error:  # whatever a library makes of a missing, damaged or foreign folder
        raise DrLLMError(
            f"the base model {name!r} must be a folder or a Hub name with a causal language model and its tokenizer, "
            f"but loading it failed ({_first_sentence(error)}); correct the name or download the model again."
        ) from error
    find_stack(model)
    model = model.to(place).eval()
    if dtype == "auto" and place.type == "cpu" and model.dtype != torch.float32:
        model = _in_faster_dtype(model)
    return model, tokenizer


def route_base(model: Any) -> PeftModel:
    """The base with a fresh router adapter, which is the identity: ready for forced decisions and for training."""
    return get_peft_model(model, DrLLMConfig()).eval()


def load_adapter_config(adapter: str) -> DrLLMConfig:
    """The configuration of the adapter in a folder or on the Hub.

    Raises:
        DrLLMError: there is none, or it is of another PEFT method.
    """
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(adapter)
    except DrLLMError:
        raise
    except Exception as error:
        raise DrLLMError(
            f"the adapter {adapter!r} must be a folder or a Hub name with an adapter_config.json, but reading it "
            f"failed ({_first_sentence(error)}); correct the name or save the adapter again."
        ) from error
    if not isinstance(config, DrLLMConfig):
        raise DrLLMError(
            f"the adapter {adapter!r} must be a DRLLM adapter, but it is of type {config.peft_type}; load it with PEFT."
        )
    return config


def load_routed(
    adapter: str, *, base: str | None = None, dtype: str = "auto", device: str | None = None
) -> tuple[PeftModel, Any]:
    """A base model with its trained adapter, and the tokenizer.

    Args:
        adapter: a folder or a name on the Hub.
        base: the base model; None is the one that the adapter names.
        dtype, device: as for `load_base`.

    Raises:
        DrLLMError: the adapter or the base cannot be loaded, or they do not fit each other.
    """
    config = load_adapter_config(adapter)
    name = base or config.base_model_name_or_path
    if not name:
        raise DrLLMError(f"the adapter {adapter!r} does not say which base model it fits; name it with --base.")
    model, tokenizer = load_base(name, dtype=dtype, device=device)
    try:
        routed = PeftModel.from_pretrained(model, adapter)
    except DrLLMError:
        raise
    except Exception as error:
        raise DrLLMError(
            f"the weights of adapter {adapter!r} must be a readable adapter_model.safetensors, but loading them failed "
            f"({_first_sentence(error)}); download or save the adapter again."
        ) from error
    return routed.eval(), tokenizer


def fingerprint(model: nn.Module) -> str:
    """A hash that tells a base from its own fine-tuning: of each weight, name, shape and some values spread over it.

    Not all values, so that it takes milliseconds for models of any size. The dtype counts only through the rounding of
    the values; they are compared as bfloat16, so the float32 and the bfloat16 copy of a checkpoint agree.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        parts = name.split(".")
        if any(part in RoutedLayer.adapter_layer_names for part in parts):
            continue
        plain = ".".join(part for part in parts if part != "base_layer").removeprefix("base_model.model.")
        digest.update(f"{plain} {tuple(weight.shape)}".encode())
        if weight.device.type != "meta":
            flat = weight.detach().flatten()
            spread = flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES]
            digest.update(spread.to("cpu", torch.bfloat16).float().numpy().tobytes())
    return digest.hexdigest()[:16]


def _device(name: str | None) -> torch.device:
    """The device of that name, tried out before a model is loaded for it."""
    place = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name or place)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise DrLLMError(
            f"the device must be one that this torch can use, such as {place}, but {name!r} is not "
            f"({_first_sentence(error)}); correct --device."
        ) from error
    return device


@torch.inference_mode()
def _in_faster_dtype(model: Any) -> Any:
    """The model in its own dtype or in float32, whichever takes less time for a short batch on this CPU."""
    own = model.dtype
    ids = torch.ones(8, 64, dtype=torch.long)
    last = torch.tensor([-1])

    def seconds() -> float:
        times = []
        for _ in range(4):
            start = time.perf_counter()
            model(ids, use_cache=False, logits_to_keep=last)
            times.append(time.perf_counter() - start)
        return min(times)

    in_own = seconds()
    model = model.float()
    return model if seconds() < in_own else model.to(own)


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """transformers draws a bar for every model it loads; a command that loads several would be buried in them."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _first_sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return text.split(". ")[0].rstrip(".:")[:200]
