"""`DrLLMConfig`: what a router adapter is made of and which base model it fits."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftType, TaskType
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME

from ..errors import DrLLMError

DEPTH_CONTROL_AS_TRAINED = -0.5

# What users of other PEFT methods may look for, and what to do instead.
_NOT_HERE = {
    "modules_to_save": "the base stays as it is; train those modules with a LoRA and put the routers on top of it",
    "target_modules": "routers serve whole blocks; choose blocks with layers_to_transform",
}


def check_depth_control(value: Any) -> float:
    """The paper's p as a float; a `DrLLMError` outside [-1, 1]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1 <= value <= 1:
        raise DrLLMError(
            f"depth_control must be a number from -1 (skip all) through -0.5 (as trained) and 0.5 (execute all) to 1 "
            f"(repeat all), but {value!r} was given; choose a number in that range."
        )
    return float(value)


def check_layer_budget(value: Any, num_blocks: int | None, num_routed: int | None) -> int | None:
    """A budget in block passes, or None for no bound; blocks without a router always cost one pass each."""
    if value is None:
        return None
    least = 0 if num_blocks is None or num_routed is None else num_blocks - num_routed
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DrLLMError(
            f"layer_budget must be None or a whole number of block passes, at least {least} (the blocks without a "
            f"router), but {value!r} was given; choose a larger whole number."
        )
    return value


@dataclass
class DrLLMConfig(PeftConfig):
    """Configuration of a router adapter (Dr.LLM, arXiv 2510.12773).

    Args:
        num_windows: contiguous windows the prompt's hidden states are cut into; each is mean-pooled (paper: K = 8).
        router_width: width of the bottleneck of each router (paper: 128).
        layers_to_transform: the blocks that get a router, an index or a list of them; None means every block. A block
            without a router always executes.
        depth_control: the paper's p in [-1, 1]: blends the routers' probabilities towards all-skip (-1), all-execute
            (0.5) or all-repeat (1); -0.5 is the routers as trained.
        layer_budget: never more than this many block passes for any row; None for no bound.
        depth_penalty: when routers are trained by the language-model loss itself, this times the expected share of
            passes (expected passes / L, mean over the rows) is added to that loss; 0 adds nothing.
        base_model_type, num_blocks, hidden_size: what the adapter fits; filled in when it is attached, and a base
            that differs is refused from then on.
        checksum: SHA-256 of the router weights as saved; a mismatch after loading is an error (filled in on saving).
        training: how the routers were trained (constants, metrics); shown by `drllm info`.

    Raises:
        DrLLMError: a value is of the wrong type or out of range.
    """

    num_windows: int = field(default=8, metadata={"help": "Windows the prompt is pooled into, paper: 8."})
    router_width: int = field(default=128, metadata={"help": "Bottleneck width of each router, paper: 128."})
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "The blocks that get a router; None means every block."}
    )
    depth_control: float = field(
        default=DEPTH_CONTROL_AS_TRAINED, metadata={"help": "The paper's p in [-1, 1]; -0.5 is as trained."}
    )
    layer_budget: int | None = field(default=None, metadata={"help": "At most this many block passes for any row."})
    depth_penalty: float = field(
        default=0.0, metadata={"help": "Price of L block passes in the loss, when trained by the loss of the model."}
    )
    base_model_type: str | None = field(default=None, metadata={"help": "`model_type` of the base it fits."})
    num_blocks: int | None = field(default=None, metadata={"help": "Number of blocks of the base it fits."})
    hidden_size: int | None = field(default=None, metadata={"help": "Width of the base it fits."})
    checksum: str | None = field(default=None, metadata={"help": "SHA-256 of the saved router weights."})
    training: dict[str, Any] | None = field(default=None, metadata={"help": "How the routers were trained."})

    def __new__(cls, *args: Any, **kwargs: Any) -> "DrLLMConfig":
        for name, way in _NOT_HERE.items():
            if kwargs.get(name):
                raise DrLLMError(f"a router adapter has no {name}, but {kwargs[name]!r} was given: {way}.")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.DRLLM  # type: ignore[attr-defined]
        if self.task_type is None:
            self.task_type = TaskType.CAUSAL_LM
        # PEFT's injection loop reads this attribute. It is derived from the model each time and not a field, because
        # the same adapter fits the model with and without its language-model head, where module names differ.
        self.target_modules: str | None = None
        for name in ("num_windows", "router_width"):
            self._check_positive(name)
        for name in ("num_blocks", "hidden_size"):
            if getattr(self, name) is not None:
                self._check_positive(name)
        self._check_layers_to_transform()
        self.depth_control = check_depth_control(self.depth_control)
        num_routed = None if self.num_blocks is None else len(self.routed_blocks(self.num_blocks))
        self.layer_budget = check_layer_budget(self.layer_budget, self.num_blocks, num_routed)
        penalty = self.depth_penalty
        if isinstance(penalty, bool) or not isinstance(penalty, (int, float)) or not 0 <= penalty < math.inf:
            raise DrLLMError(f"depth_penalty must be a number of at least 0, but {penalty!r} was given; correct it.")
        for name, kind in (("base_model_type", str), ("checksum", str), ("training", dict)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise DrLLMError(
                    f"{name} must be None or a {kind.__name__}, but {value!r} was given; correct or remove it."
                )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> "DrLLMConfig":
        """Read a saved configuration, from a folder or the Hub.

        Raises:
            DrLLMError: the folder has weights as a pickle only, which can run code when it is loaded.
        """
        folder = Path(pretrained_model_name_or_path, subfolder or "")
        if (folder / WEIGHTS_NAME).exists() and not (folder / SAFETENSORS_WEIGHTS_NAME).exists():
            raise DrLLMError(
                f"the weights of a router adapter must be {SAFETENSORS_WEIGHTS_NAME}, but {folder} has only a pickle, "
                f"{WEIGHTS_NAME}; ask for the adapter in safetensors."
            )
        config: DrLLMConfig = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        return config

    def routed_blocks(self, num_blocks: int) -> list[int]:
        """Indices of the blocks that have a router in a stack of `num_blocks`."""
        layers = self.layers_to_transform
        if layers is None:
            return list(range(num_blocks))
        return [layers] if isinstance(layers, int) else list(layers)

    def _check_positive(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise DrLLMError(f"{name} must be a whole number of at least 1, but {value!r} was given; correct it.")

    def _check_layers_to_transform(self) -> None:
        if self.layers_to_transform is None:
            return
        layers: Any = self.layers_to_transform
        if isinstance(layers, int) and not isinstance(layers, bool):
            layers = [layers]
        limit = math.inf if self.num_blocks is None else self.num_blocks
        valid = isinstance(layers, (list, tuple, set)) and all(
            isinstance(block, int) and not isinstance(block, bool) and 0 <= block < limit for block in layers
        )
        if not valid or not layers or len(set(layers)) != len(layers):
            bound = "" if self.num_blocks is None else f" below {self.num_blocks}"
            raise DrLLMError(
                f"layers_to_transform must be None, a block index or a list of different block indices{bound}, "
                f"but {self.layers_to_transform!r} was given; correct the list."
            )
        self.layers_to_transform = sorted(layers)
