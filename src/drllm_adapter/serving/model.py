"""Any decoder of vLLM whose blocks are called `block(positions, hidden_states, residual)`, with routed blocks.

That convention is what is asked for, not a list of classes: what flows between blocks is hidden_states + residual, and
a block may be given the sum with no residual. A model that is built another way is refused by name when it is loaded.
Modules keep their names, so weights load as vLLM loads them.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.attention import Attention

from ..errors import DrLLMError
from .plan import Current, Plan
from .routers import Routers
from .settings import KEY, PREFIX, Settings, check_version, refuse

_CALLED_WITH = ("positions", "hidden_states", "residual")


def __getattr__(name: str) -> Any:
    """The routed kind of an architecture of vLLM, by the name under which `plugin.register` announced it."""
    if not name.startswith(PREFIX):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vllm import ModelRegistry

    globals()[name] = made = routed(ModelRegistry.models[name.removeprefix(PREFIX)].load_model_cls(), name)
    return made


def routed(base: type[nn.Module], name: str) -> type[nn.Module]:
    """A class like `base` whose blocks run for the requests that want them."""

    class Routed(base):  # type: ignore[misc, valid-type]
        def __init__(self, *, vllm_config: Any, prefix: str = "", **kwargs: Any) -> None:
            settings = Settings.from_json((vllm_config.additional_config or {}).get(KEY))
            check_engine(vllm_config, settings)
            super().__init__(vllm_config=vllm_config, prefix=prefix, **kwargs)
            self.drllm_settings = settings
            self.drllm_current = Current()
            blocks = find_blocks(self, settings, base.__name__)
            device = vllm_config.device_config.device
            width = vllm_config.model_config.get_hidden_size()
            routers = Routers(settings, width, device) if settings.decides else None
            for index, block in enumerate(blocks):
                RoutedBlock(block, index, settings, routers, self.drllm_current, vllm_config).install()

        @staticmethod
        def get_model_state_cls() -> Any:
            """What vLLM's second model runner asks for."""
            from .runner_v2 import RoutedModelState

            return RoutedModelState

    Routed.__name__ = Routed.__qualname__ = name
    Routed.__module__ = __name__
    return Routed


def check_engine(vllm_config: Any, settings: Settings) -> None:
    """Refuse an engine that would not keep every request on its path, however it was started.

    Raises:
        DrLLMError: see `settings.refuse`.
    """
    import vllm

    from .arguments import is_routed_worker, values_of

    check_version(vllm.__version__)
    refuse(values_of(vllm_config), settings)
    worker = str(vllm_config.parallel_config.worker_cls)
    if not is_routed_worker(worker):
        raise DrLLMError(f"a routed model must run in a routed worker, but worker_cls is {worker}; leave it out.")
    scheduler = vllm_config.scheduler_config.scheduler_cls
    if vllm_config.cache_config.enable_prefix_caching and not str(scheduler).startswith(f"{__package__}."):
        raise DrLLMError(
            f"prefixes must be cached by path, but scheduler_cls is {scheduler}; leave it out, or prefix caching."
        )


def find_blocks(model: nn.Module, settings: Settings, name: str) -> list[nn.Module]:
    """The blocks of a decoder, in order.

    Raises:
        DrLLMError: they are not called in the way that is needed, or keep something else than keys and values.
    """
    lists = [
        (where, module)
        for where, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == settings.num_blocks
    ]
    if not lists:
        raise DrLLMError(f"vLLM's {name} must have a list of {settings.num_blocks} blocks to be routed, but has none.")
    blocks = list(min(lists, key=lambda item: item[0].count("."))[1])
    for block in blocks:
        parameters = list(inspect.signature(type(block).forward).parameters.values())[1:]
        asked = tuple(parameter.name for parameter in parameters if parameter.default is parameter.empty)
        if asked[:3] != _CALLED_WITH:
            raise DrLLMError(
                f"the blocks of vLLM's {name} must be called with {', '.join(_CALLED_WITH)} to be routed, but "
                f"{type(block).__name__} takes {', '.join(asked) or 'nothing'}; serve the model with transformers."
            )
    return blocks


class RoutedBlock:
    """One block: its forward for the requests that make each pass, and pages of its own for a second one."""

    def __init__(
        self,
        block: nn.Module,
        index: int,
        settings: Settings,
        routers: Routers | None,
        current: Current,
        vllm_config: Any,
    ) -> None:
        self.block, self.index = block, index
        self._settings, self._routers, self._current = settings, routers, current
        self._forward: Callable[..., tuple[Tensor, Tensor]] = block.forward
        self._last = index == settings.num_blocks - 1
        self._convention_is_proven = False
        contexts = vllm_config.compilation_config.static_forward_context
        sites: list[tuple[nn.Module, str, Any]] = [
            (parent, name, child)
            for parent in block.modules()
            for name, child in parent.named_children()
            if any(child is known for known in contexts.values())
        ]
        for _, _, attention in sites:
            self._check_attention(attention)
        self._sites = [(parent, name) for parent, name, _ in sites]
        # By pass: the attention layers, and their names in vLLM's context.
        self._passes = [[attention for _, _, attention in sites]]
        if index in settings.repeatable:
            self._passes.append([self._again(*site, contexts) for site in sites])
        self._names = [[attention.layer_name for attention in its] for its in self._passes]

    def install(self) -> None:
        """Instances look up `forward` on themselves first: the class stays as it is."""
        self.block.forward = self.forward

    def _check_attention(self, attention: Any) -> None:
        kind = type(attention)
        problem = None
        if kind is not Attention:
            problem = f"is a {kind.__name__}"
        elif getattr(attention, "sliding_window", None) is not None:
            problem = f"has a sliding window of {attention.sliding_window}"
        elif attention.kv_sharing_target_layer_name is not None:
            problem = "uses the keys of another block"
        if problem is not None:
            raise DrLLMError(
                f"a routed block must keep the keys and values of all tokens in an attention layer of its own, but "
                f"that of block {self.index} {problem}; serve the model with transformers."
            )

    def _again(self, parent: nn.Module, name: str, attention: Any, contexts: dict[str, Any]) -> Any:
        """A copy of an attention layer under the index of a block behind the last one; vLLM gives it pages itself."""
        again = copy.deepcopy(attention)
        place = self._settings.num_blocks + self.index
        again.layer_name = attention.layer_name.replace(f".{self.index}.", f".{place}.", 1)
        assert again.layer_name not in contexts
        contexts[again.layer_name] = again
        parent.add_module(f"{name}_again", again)
        return again

    def forward(
        self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        plan = self._current.plan
        if plan is None:
            if not self._convention_is_proven:
                self._prove_convention(positions, hidden_states, kwargs)
            return self._run(0, positions, hidden_states, residual, kwargs)
        if plan.deciding and self._routers is not None:
            hidden_states, residual = _stream(hidden_states, residual), None
            plan.decide(self.index, self._routers.decide(self.index, plan, hidden_states))
        for number in range(2):
            wanted = plan.decisions[:, self.index] > number
            if not wanted.any():
                break
            if wanted.all():
                hidden_states, residual = self._run(number, positions, hidden_states, residual, kwargs)
                continue
            hidden_states, residual = (
                self._run_part(number, plan, wanted, positions, hidden_states, residual, kwargs),
                None,
            )
        if self._last and residual is None:
            # The norm behind the last block takes both.
            residual = torch.zeros_like(hidden_states)
        return hidden_states, residual

    def _run_part(
        self,
        number: int,
        plan: Plan,
        wanted: Any,
        positions: Tensor,
        hidden: Tensor,
        residual: Tensor | None,
        kwargs: Any,
    ) -> Tensor:
        part = plan.part(wanted)
        stream = _stream(hidden, residual)
        with plan.only(part, self._names[number]):
            output = self._run(number, positions[..., part.tokens], stream[part.tokens], None, kwargs)
        return stream.index_copy(0, part.tokens, _stream(*output))

    def _run(
        self, number: int, positions: Tensor, hidden: Tensor, residual: Tensor | None, kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if number == 0:
            return self._forward(positions, hidden, residual, **kwargs)
        with self._attending(self._passes[number]):
            return self._forward(positions, hidden, residual, **kwargs)

    @contextmanager
    def _attending(self, layers: Sequence[nn.Module]) -> Iterator[None]:
        """Within, these are the block's attention layers."""
        try:
            for (parent, name), layer in zip(self._sites, layers, strict=True):
                parent._modules[name] = layer
            yield
        finally:
            for (parent, name), first in zip(self._sites, self._passes[0], strict=True):
                parent._modules[name] = first

    def _prove_convention(self, positions: Tensor, hidden: Tensor, kwargs: Any) -> None:
        """In a dummy run: a block given a stream in two halves must do what it does with their sum.

        Raises:
            DrLLMError: it does not.
        """
        if any(isinstance(value, Tensor) for value in kwargs.values()):
            raise DrLLMError(
                f"a routed block must be told of its tokens by positions and states alone, but "
                f"{type(self.block).__name__} is given {', '.join(kwargs)} as well; serve the model with transformers."
            )
        sample = torch.randn(hidden.shape, dtype=torch.float32, device=hidden.device).to(hidden.dtype)
        # Without requests attention layers leave their output as it was allocated.
        with torch.no_grad(), self._attending([_Queries() for _ in self._sites]):
            # vLLM's kernels may write into what they are given.
            whole = _stream(*self._forward(positions, sample.clone(), None, **kwargs))
            halves = _stream(*self._forward(positions, sample / 2, sample / 2, **kwargs))
        if not torch.allclose(whole.float(), halves.float(), rtol=0.05, atol=0.05 * float(whole.float().std())):
            raise DrLLMError(
                f"what enters a routed block must be the sum of its states and its residual, but "
                f"{type(self.block).__name__} takes them in another way; serve the model with transformers."
            )
        self._convention_is_proven = True


class _Queries(nn.Module):
    """In place of attention: every token attends to its own query."""

    def forward(self, query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return query


def _stream(hidden: Tensor, residual: Tensor | None) -> Tensor:
    """`[tokens, width]`: what flows between blocks."""
    return hidden if residual is None else hidden + residual
