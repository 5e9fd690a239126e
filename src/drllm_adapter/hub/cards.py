"""The cards of adapters and of supervision sets, from what their own folders say: nothing that was not measured."""

import os
import shutil
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCard, EvalResult, ModelCard, ModelCardData, RepoCard
from peft.utils import CONFIG_NAME

from ..adapter.config import CARD
from ..errors import DrLLMError, first_sentence
from ..files import MARKER, REPORT, write_text_atomic
from ..models.download import is_hub_name
from ..models.loading import load_adapter_config
from ..supervision.rows import INFO
from . import sections
from .adapter_card import MEASURED_BY, adapter_card
from .reports import FIGURE, read_evaluation
from .supervision_card import supervision_card
from .wording import TAGS

_TITLE = "# Model Card for Model ID"
# Lines that PEFT and transformers add to the template of their cards.
_ADDED_TO_TEMPLATE = (
    "This is the model card of a 🤗 transformers model",
    "### Framework versions",
    "- PEFT ",
    "## Training procedure",
    "The following `bitsandbytes` quantization config",
)

_TAGS_OF_PEFT = ("base_model:", "transformers")


def write_card(
    folder: str | os.PathLike[str],
    *,
    repo_id: str | None = None,
    license: str | None = None,
    base: str | None = None,
    on_hub: str | None = None,
    card: Path | None = None,
) -> Path:
    """Write or renew `README.md` in the folder of an adapter or a supervision set.

    What somebody wrote into the card stays: text outside of the marked sections, sections changed by hand, and fields
    of the front matter. The results are those of the evaluations inside the folder, see `add_evaluation`.

    Args:
        folder: with an `adapter_config.json` or made by `drllm search`.
        repo_id: its name on the Hub, for the code on the card, `owner/name` or `owner/name/folder`; None is the
            folder's name.
        license: identifier such as "apache-2.0"; None leaves what the card says.
        base: name of the base model on the Hub, over what an older card says; None leaves that.
        on_hub: the card of that repository, which somebody may have edited there.
        card: where the card is, if not in the folder.

    Raises:
        DrLLMError: the folder holds neither; a report was measured with other weights or is damaged; the front matter
            is no YAML; the card was edited both here and on the Hub.
    """
    folder = Path(folder)
    path = card or folder / CARD
    old, fields = _existing(path, on_hub)
    name = repo_id or folder.resolve().name
    kind: type[RepoCard]
    if (folder / CONFIG_NAME).is_file():
        new, kind = adapter_card(folder, load_adapter_config(str(folder)), name), ModelCard
    elif (folder / INFO).is_file():
        new, kind = supervision_card(folder, name), DatasetCard
    else:
        found = f"has neither {CONFIG_NAME} nor {INFO}" if folder.is_dir() else "is no folder that exists"
        raise DrLLMError(
            f"{folder} must hold an adapter or a supervision set to have a card, but it {found}; correct the name."
        )
    renewed = _renewed(kind, old, new, path)
    if old is None and path.is_file():
        _keep_fields(renewed, ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True))
    if fields is not None and fields != old:
        newer = kind(fields, ignore_metadata_errors=True).data.to_dict()
        for field in newer.keys() - {"model-index", "dataset_info", "tags"}:
            renewed.data[field] = newer[field]
    if license is not None:
        renewed.data["license"] = license
    if base is not None and kind is ModelCard:
        renewed.data["base_model"] = base
    write_text_atomic(path, sections.seal(str(renewed)))
    return path


def add_evaluation(adapter: str | os.PathLike[str], evaluation: str | os.PathLike[str]) -> Path:
    """Copy what `drllm eval` wrote into the adapter's folder, so that its card shows it.

    Returns:
        The copy, a folder of the same name.

    Raises:
        DrLLMError: it is no evaluation, it was measured with other weights, or the adapter has another one of that
            name.
    """
    adapter, evaluation = Path(adapter), Path(evaluation)
    read_evaluation(evaluation, load_adapter_config(str(adapter)))
    target = adapter / evaluation.resolve().name
    if target.exists() and target.resolve() != evaluation.resolve():
        if (target / REPORT).is_file() and (target / REPORT).read_bytes() == (evaluation / REPORT).read_bytes():
            return target
        raise DrLLMError(
            f"{target} must be free for the evaluation {evaluation}, but it holds something else; rename one of them."
        )
    if not target.exists():
        target.mkdir()
        for name in (REPORT, FIGURE, MARKER):
            if (evaluation / name).is_file():
                shutil.copy(evaluation / name, target)
    return target


# What is there already


def _is_template(card: str) -> bool:
    """Whether the text is what PEFT or transformers wrote: nobody's words, so it gives way."""
    if _TITLE not in card:
        return False
    try:
        found: Any = ModelCard(card, ignore_metadata_errors=True)
    except yaml.YAMLError:
        return False
    template = {
        line
        for data in (ModelCardData(), found.data)
        for line in ModelCard.from_template(data).text.splitlines()
    }  # fmt: skip
    lines = (line for line in found.text.splitlines() if line.strip())
    return all(line in template or line.startswith(_ADDED_TO_TEMPLATE) for line in lines)


def _existing(path: Path, on_hub: str | None) -> tuple[str | None, str | None]:
    """Two cards to renew, None where there is none worth keeping: whose text is kept, and whose front matter."""
    here = path.read_text(encoding="utf-8") if path.is_file() else None
    here, there = (None if card is None or _is_template(card) else card for card in (here, on_hub))
    if here is None or there is None or here == there:
        return here or there, here or there
    if sections.is_edited(here) and sections.is_edited(there):
        raise DrLLMError(
            f"the card must be edited in one place, but {path} and the one on the Hub were both changed; put one's "
            f"changes into the other, and make the two files equal."
        )
    if sections.is_edited(here):
        return here, here
    # What was pushed once may hold somebody's words; the fields here are newer unless somebody edited those there.
    return there, there if sections.is_edited(there) else here


def _renewed(kind: type[RepoCard], old: str | None, new: RepoCard, path: Path) -> RepoCard:
    """The new card with all that somebody wrote into the old one."""
    if old is None:
        return new
    try:
        card = kind(sections.replace_sections(old, sections.seal(str(new))), ignore_metadata_errors=True)
    except Exception as error:  # whatever YAML makes of it
        raise DrLLMError(
            f"the card {path} must begin with front matter in YAML between lines of ---, but reading it failed "
            f"({first_sentence(error)}); correct it, or delete the file to have it written anew."
        ) from error
    fields, results = new.data.to_dict(), _results_of(new)
    others = [result for result in _results_of(card) if result.source_url != MEASURED_BY]
    if not is_hub_name(str(card.data.get("base_model") or "")):
        card.data["base_model"] = None  # PEFT puts the base's folder here, when it saves into this one
    for name, value in fields.items():
        if name != "model-index" and card.data.get(name) is None:
            card.data[name] = value
    card.data["tags"] = list(dict.fromkeys([*(card.data.get("tags") or ()), *TAGS]))
    if kind is ModelCard:
        card.data["eval_results"] = (results + others) or None
        name = card.data.get("model_name") or new.data.get("model_name")
        card.data["model_name"] = name if results or others else None
    if "dataset_info" in fields:  # counts bytes and rows: never a matter of taste
        card.data["dataset_info"] = fields["dataset_info"]
    return card


def _keep_fields(card: RepoCard, template: RepoCard) -> None:
    """Take over what somebody had a library write into the front matter of its template: a license, tags."""
    for name, value in template.data.to_dict().items():
        if name not in ("base_model", "model-index", "tags") and card.data.get(name) is None:
            card.data[name] = value
    tags = [tag for tag in template.data.get("tags") or () if not tag.startswith(_TAGS_OF_PEFT)]
    card.data["tags"] = list(dict.fromkeys([*(card.data.get("tags") or ()), *tags]))


def _results_of(card: RepoCard) -> list[EvalResult]:
    found: list[EvalResult] | None = card.data.get("eval_results")
    return found or []
