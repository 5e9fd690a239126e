"""`DrLLMConfig`: what a router adapter is made of and which base model it fits."""

import math
import os
import reprlib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import file_exists, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from peft import PeftConfig, PeftType, TaskType

from ..errors import DrLLMError, check_range
from .after_saving import writer
from .weight_file import PICKLE, WEIGHTS, check_weight_file, refuse_pickle

NAME = "DRLLM"
CARD = "README.md"
DEPTH_CONTROL_AS_TRAINED = -0.5
# Far above every model there is: what lies beyond would only take memory.
_LARGEST = {"num_windows": 1 << 16, "router_width": 1 << 20, "num_blocks": 1 << 16, "hidden_size": 1 << 24}
_KINDS: dict[str, type] = {
    "base_model_type": str,
    "base_model_name_or_path": str,
    "revision": str,
    "base_config": str,
    "base_revision": str,
    "base_weights": str,
    "checksum": str,
}

_TASK_TYPES = (TaskType.CAUSAL_LM, TaskType.FEATURE_EXTRACTION)

# What users of other PEFT methods may look for, and what to do instead.
_NOT_HERE = {
    "modules_to_save": "the base stays as it is; train those modules with a LoRA and put the routers on top of it",
    "target_modules": "routers serve whole blocks; choose blocks with layers_to_transform",
}


def _refuse_not_here(given: Mapping[str, Any], names: Iterable[str]) -> None:
    for name in names:
        if given.get(name):
            raise DrLLMError(
                f"a router adapter has no {name}, but {reprlib.repr(given[name])} was given: {_NOT_HERE[name]}."
            )


def check_depth_control(value: Any) -> float:
    """The paper's p as a float; a `DrLLMError` outside [-1, 1]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1 <= value <= 1:
        raise DrLLMError(
            f"depth_control must be a number from -1 (skip all) through -0.5 (as trained) and 0.5 (execute all) to 1 "
            f"(repeat all), but {reprlib.repr(value)} was given; choose a number in that range."
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
            f"router), but {reprlib.repr(value)} was given; choose a larger whole number."
        )
    return value


@dataclass
class DrLLMConfig(PeftConfig):
    """Configuration of a router adapter (Dr.LLM, arXiv 2510.12773).

    Args:
        num_windows: contiguous windows the prompt's hidden states are cut into; each is mean-pooled (paper: K = 8).
        router_width: width of the bottleneck of each router (paper: 128).
        rms_norm: divide the hidden states of each token by their root mean square before they are pooled (the paper
            does not).
        layers_to_transform: the blocks that get a router, an index or a list of them; None means every block. A block
            without a router always executes.
        depth_control: the paper's p in [-1, 1]: blends the routers' probabilities towards all-skip (-1), all-execute
            (0.5) or all-repeat (1); -0.5 is the routers as trained.
        layer_budget: never more than this many block passes for any row; None for no bound.
        depth_penalty: when routers are trained by the language-model loss itself, this times the expected share of
            passes (expected passes / L, mean over the rows) is added to that loss; 0 adds nothing.
        base_model_type, num_blocks, hidden_size, base_config: what the adapter fits, the last being a hash of the
            base's dimensions; filled in when it is attached, and a base that differs is refused from then on.
        base_revision, base_weights: commit of the base on the Hub and a hash of a sample of its weights; a base that
            fits but differs in these is warned of once.
        checksum: SHA-256 of the router weights as saved; a mismatch after loading is an error (filled in on saving).
        settings_checksum, training: in the files of older adapters; neither is kept.

    Raises:
        DrLLMError: a value is of the wrong type or out of range.
    """

    num_windows: int = field(default=8, metadata={"help": "Windows the prompt is pooled into, paper: 8."})
    router_width: int = field(default=128, metadata={"help": "Bottleneck width of each router, paper: 128."})
    rms_norm: bool = field(default=False, metadata={"help": "Normalise each token's states before they are pooled."})
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
    base_config: str | None = field(default=None, metadata={"help": "Hash of the dimensions of the base it fits."})
    base_revision: str | None = field(default=None, metadata={"help": "Commit of the base it was made for."})
    base_weights: str | None = field(default=None, metadata={"help": "Hash of a sample of that base's weights."})
    checksum: str | None = field(default=None, metadata={"help": "SHA-256 of the saved router weights."})
    settings_checksum: InitVar[Any] = None
    training: InitVar[Any] = None

    def __new__(cls, *args: Any, **kwargs: Any) -> "DrLLMConfig":
        _refuse_not_here(kwargs, _NOT_HERE)
        return super().__new__(cls)

    def __post_init__(self, settings_checksum: Any, training: Any) -> None:
        if self.task_type is not None:
            self._check_task_type()  # PEFT's own refusal names types that would not do here
        super().__post_init__()
        self.peft_type = PeftType.DRLLM  # type: ignore[attr-defined]
        if self.task_type is None:
            self.task_type = TaskType.CAUSAL_LM
        # PEFT's injection loop reads this attribute. It is derived from the model each time and not a field, because
        # the same adapter fits the model with and without its language-model head, where module names differ.
        self.target_modules: str | None = None
        # Read from a saved adapter, whose weights are loaded next; attaching it sets this to false.
        self.weights_follow = self.checksum is not None
        self.check()

    def check(self) -> None:
        """Check and normalise the settings; attributes may have been set since they were checked last.

        Raises:
            DrLLMError: a value is of the wrong type or out of range.
        """
        _refuse_not_here(vars(self), ("modules_to_save",))
        self._check_task_type()
        for name, largest in _LARGEST.items():
            if getattr(self, name) is not None or name not in ("num_blocks", "hidden_size"):
                check_range(name, getattr(self, name), 1, largest)
        if not isinstance(self.rms_norm, bool):
            raise DrLLMError(
                f"rms_norm must be true or false, but {reprlib.repr(self.rms_norm)} was given; correct it."
            )
        self._check_layers_to_transform()
        self.depth_control = check_depth_control(self.depth_control)
        num_routed = None if self.num_blocks is None else len(self.routed_blocks(self.num_blocks))
        self.layer_budget = check_layer_budget(self.layer_budget, self.num_blocks, num_routed)
        check_range("depth_penalty", self.depth_penalty, 0, math.inf, whole=False)
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise DrLLMError(
                    f"{name} must be None or a {kind.__name__}, but {reprlib.repr(value)} was given; correct or "
                    f"remove it."
                )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> "DrLLMConfig":
        """As PEFT's; looks at the header of the weight file as well, because PEFT comes by here before it loads it.

        Raises:
            DrLLMError: the weights are not those of the routers that the configuration describes, or are a pickle.
        """
        config: DrLLMConfig = super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        if isinstance(config, DrLLMConfig):
            weights = _weight_file(str(pretrained_model_name_or_path), subfolder, cls._split_kwargs(kwargs)[0])
            if weights is not None:
                check_weight_file(weights, config.weight_shapes())
        return config

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """As PEFT's; makes the card, because PEFT saves the configuration last and has written its own card by then."""
        self.check()
        super().save_pretrained(save_directory, **kwargs)
        if (Path(save_directory) / CARD).is_file() and (Path(save_directory) / WEIGHTS).is_file():
            try:
                writer().write_card(save_directory)
            except DrLLMError as error:
                warnings.warn(f"the adapter was saved, but its card was not renewed: {error}", stacklevel=3)

    def weight_shapes(self) -> dict[str, tuple[int, ...]] | None:
        """Shape of every router weight by `"<block>.<parameter>"`; None when it is not known what the adapter fits."""
        if self.num_blocks is None or self.hidden_size is None:
            return None
        width = self.router_width
        return {
            f"{block}.{name}": shape
            for block in self.routed_blocks(self.num_blocks)
            for name, shape in (
                ("down.weight", (width, self.hidden_size)),
                ("down.bias", (width,)),
                ("up.weight", (3, width)),
                ("up.bias", (3,)),
            )
        }

    def routed_blocks(self, num_blocks: int) -> list[int]:
        """Indices of the blocks that have a router in a stack of `num_blocks`."""
        layers = self.layers_to_transform
        if layers is None:
            return list(range(num_blocks))
        return [layers] if isinstance(layers, int) else list(layers)

    def _check_task_type(self) -> None:
        if self.task_type not in _TASK_TYPES:
            raise DrLLMError(
                f"a router adapter needs a decoder with a language-model head (task_type CAUSAL_LM) or none "
                f"(FEATURE_EXTRACTION), but task_type is {reprlib.repr(self.task_type)}; a head that has to be trained "
                f"goes with a LoRA below the routers."
            )

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
                f"but {reprlib.repr(self.layers_to_transform)} was given; correct the list."
            )
        self.layers_to_transform = sorted(layers)


def _weight_file(place: str, subfolder: str | None, download: dict[str, Any]) -> Path | None:
    """The weight file of an adapter, downloaded as PEFT will; None when there is none yet.

    Raises:
        DrLLMError: there is only a pickle.
    """
    folder = Path(place) / (subfolder or "")
    if folder.is_dir():
        weights, pickle = folder / WEIGHTS, folder / PICKLE
        if not os.path.lexists(weights) and pickle.exists():
            raise refuse_pickle(place)
        return weights if os.path.lexists(weights) else None
    try:
        return Path(hf_hub_download(place, WEIGHTS, subfolder=subfolder, **download))
    except LocalEntryNotFoundError:
        return None  # offline, and PEFT will say so if it needs the file
    except EntryNotFoundError:
        name = f"{subfolder}/{PICKLE}" if subfolder else PICKLE
        if file_exists(place, name, revision=download.get("revision"), token=download.get("token")):
            raise refuse_pickle(place) from None
        return None
