"""The card of an adapter that is pushed with PEFT's or transformers' own `push_to_hub`."""

import json
import warnings
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME

from ..errors import DrLLMError
from .after_saving import writer
from .config import CARD, NAME


class CardOnPush:
    """Stands in for the model's `_upload_modified_files` for one call: the one that pushes what was just saved.

    `push_to_hub` saves the adapter, then puts transformers' general card in place of the one in the folder, then
    uploads the folder through this method of the model: the last moment at which the card can be made.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, working_dir: str, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        self.remove(self.model)
        try:
            self._prepare(Path(working_dir), repo_id)
        except DrLLMError as error:
            warnings.warn(f"the adapter is pushed without its own card: {error}", stacklevel=3)
        return self.model._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    @staticmethod
    def _prepare(folder: Path, repo_id: str) -> None:
        # PEFT saves an adapter of another name than "default" into a folder of that name.
        adapters = [file.parent for file in (folder / CONFIG_NAME, *sorted(folder.glob(f"*/{CONFIG_NAME}")))]
        adapters = [adapter for adapter in adapters if _is_router_adapter(adapter / CONFIG_NAME)]
        if not adapters:
            return
        bases = dict.fromkeys(writer().share_base(adapter) for adapter in adapters)
        for base in bases:
            if base.startswith("."):
                warnings.warn(
                    f"the adapter is pushed with {base} for its base model, which is a folder here; set "
                    f"base_model_name_or_path in the model's peft_config to its name on the Hub first, and the adapter "
                    f"loads it by itself.",
                    stacklevel=4,
                )
        first = adapters[0]
        writer().write_card(first, repo_id="/".join((repo_id, *first.relative_to(folder).parts)), card=folder / CARD)

    def attach(self) -> None:
        if hasattr(type(self.model), "_upload_modified_files"):
            self.model._upload_modified_files = self

    @staticmethod
    def remove(model: Any) -> None:
        model.__dict__.pop("_upload_modified_files", None)


def _is_router_adapter(config: Path) -> bool:
    return config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("peft_type") == NAME
