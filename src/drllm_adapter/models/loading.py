"""Loading a base model or an adapter by name for the commands: refusals in one sentence, and the choice of a dtype."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file, extract_commit_hash

from ..adapter.config import DrLLMConfig
from ..adapter.integrity import check_adapter_folder, read_adapter_config
from ..adapter.stack import find_stack
from ..errors import DrLLMError, refusing
from .download import base_of, check_model_name, fetch_adapter, split_revision
from .speed import use_the_faster

DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_base(name: str, *, dtype: str = "auto", device: str | None = None) -> tuple[Any, Any]:
    """A causal language model in evaluation mode, and its tokenizer.

    Args:
        name: a folder or a name on the Hub, `owner/name` or `owner/name@revision`.
        dtype: "auto" is the checkpoint's own on a GPU; on the CPU, where half precision may be emulated, a float32
            checkpoint stays so and another runs in float32 or its own, whichever is faster here.
        device: None is the first GPU, or the CPU without one. "auto" is for models larger than one device: accelerate
            spreads the blocks over all GPUs, then the CPU, then the disk; the checkpoint's own dtype is kept.

    Raises:
        DrLLMError: nothing loadable is there, the architecture is not one that routes exactly, or there is no such
            device.
    """
    if dtype not in DTYPES:
        raise DrLLMError(f"dtype must be one of {', '.join(DTYPES)}, but {dtype!r} was given; choose one of them.")
    check_model_name(name)
    place = None if device == "auto" else _device(device)
    spread: dict[str, Any] = {} if place else {"device_map": "auto"}
    where, revision = split_revision(name)
    # Whatever a library makes of a missing, damaged or foreign folder.
    with refusing(
        f"the base model {name!r} must be a folder or a Hub name with a causal language model and its tokenizer, but "
        "loading it failed",
        "correct the name or download the model again",
    ):
        tokenizer = AutoTokenizer.from_pretrained(where, revision=revision)
        with _without_progress_bar():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                where, revision=revision, dtype=dtype, output_loading_info=True, **spread
            )
        model, found = loaded
        # transformers keeps no note of the commit, which adapters and supervision sets remember.
        read = cached_file(where, "config.json", revision=revision, local_files_only=True)
        model.config._commit_hash = extract_commit_hash(read, None)
    find_stack(model)
    if found["missing_keys"]:
        raise DrLLMError(
            f"the base model {name!r} must come with all its weights, but {len(found['missing_keys'])} are missing, "
            f"the first being {min(found['missing_keys'])}, and would be random; download it again, or name the "
            f"causal language model that it was made from."
        )
    model.eval()
    if place is None:
        return model, tokenizer
    model = model.to(place)
    if place.type == "cpu":
        use_the_faster(model, any_dtype=dtype == "auto" and model.dtype != torch.float32)
    return model, tokenizer


def route_base(model: Any) -> PeftModel:
    """The base with a fresh router adapter, which is the identity: ready for forced decisions and for training."""
    return get_peft_model(model, DrLLMConfig()).eval()


def load_adapter_config(adapter: str) -> DrLLMConfig:
    """The configuration of the adapter in a folder or on the Hub.

    Raises:
        DrLLMError: there is none, or it is of another PEFT method.
    """
    return read_adapter_config(fetch_adapter(adapter, weights=False), adapter)


def load_routed(
    adapter: str, *, base: str | None = None, dtype: str = "auto", device: str | None = None
) -> tuple[PeftModel, Any]:
    """A base model with its trained adapter, and the tokenizer.

    Args:
        adapter: a folder or a name on the Hub, see `download.HubName`.
        base: the base model; None is the one that the adapter names.
        dtype, device: as for `load_base`.

    Raises:
        DrLLMError: the adapter or the base cannot be loaded, or they do not fit each other.
    """
    folder = fetch_adapter(adapter)
    config = check_adapter_folder(folder, adapter)
    name = base or base_of(adapter, config)
    model, tokenizer = load_base(name, dtype=dtype, device=device)
    with refusing(
        f"the adapter {adapter!r} must fit the base {name!r}, but loading it failed",
        "download or save the adapter again",
    ):
        routed = PeftModel.from_pretrained(model, str(folder))
    return routed.eval(), tokenizer


def _device(name: str | None) -> torch.device:
    """The device of that name, tried out before a model is loaded for it."""
    place = "cuda" if torch.cuda.is_available() else "cpu"
    # Torch without CUDA asserts.
    with refusing(
        f"the device must be one that this torch can use, such as {place}, but {name!r} is not",
        "correct --device",
        (RuntimeError, AssertionError),
    ):
        device = torch.device(name or place)
        torch.empty(0, device=device)
    return device


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
