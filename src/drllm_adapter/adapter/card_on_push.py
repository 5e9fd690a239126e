"""The card of an adapter that is pushed with PEFT's or transformers' own `push_to_hub`."""

import warnings
from pathlib import Path
from typing import Any

from ..errors import DrLLMError


class CardOnPush:
    """Stands in for the model's `_upload_modified_files` for one call: the one that pushes what was just saved.

    `push_to_hub` saves the adapter, then puts transformers' general card in place of the one in the folder, then
    uploads the folder through this method of the model: the last moment at which the card can be made.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, working_dir: str, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        self.model.__dict__.pop("_upload_modified_files", None)
        try:
            from ..hub import share_base, write_card  # know everything else, and so this module

            base = share_base(Path(working_dir))
            if base.startswith("."):
                warnings.warn(
                    f"the adapter is pushed with {base} for its base model, which is a folder here; set "
                    f"base_model_name_or_path in the model's peft_config to its name on the Hub first, and the adapter "
                    f"loads it by itself.",
                    stacklevel=3,
                )
            write_card(working_dir, repo_id=repo_id)
        except DrLLMError as error:
            warnings.warn(f"the adapter is pushed without its own card: {error}", stacklevel=3)
        return self.model._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def attach(self) -> None:
        if hasattr(type(self.model), "_upload_modified_files"):
            self.model._upload_modified_files = self
