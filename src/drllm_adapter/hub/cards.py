"""The cards of adapters and of supervision sets, from what their own folders say: nothing that was not measured."""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, ModelCard, ModelCardData, RepoCard
from peft.utils import CONFIG_NAME

from ..adapter.config import CARD
from ..errors import DrLLMError, refusing
from ..files import MARKER, REPORT, write_text_atomic
from ..models.download import HubName, is_hub_name
from ..models.loading import load_adapter_config
from ..models.unroll import UNROLLED
from ..supervision.rows import INFO
from .adapter_card import adapter_card
from .checkpoint_card import checkpoint_card
from .eval_results import write_eval_results
from .reports import FIGURE, evaluations, read_evaluation
from .supervision_card import supervision_card
from .wording import MEASURED_BY

# What is rewritten of a card; the rest belongs to whoever edits it. Older cards carry digests in their markers.
_SECTION = re.compile(r"<!-- drllm:(?P<name>[a-z]+)[^>]* -->\n(?P<content>.*?)<!-- /drllm:(?P=name) -->", re.S)
_NOTE = re.compile(
    r"^(?:<!-- drllm (?:rewrites|written) [^>]*-->|# (?:Layer (?:routers for|paths of) .*|.* along one path))$", re.M
)
_OF_OLDER_CARDS = re.compile(r"^<!-- drllm written .*-->\n?|(?<=between its markers), unless you changed it", re.M)
_MEASURED = ("model-index", "dataset_info")
_SPACE = "space"
_TEMPLATE = "# Model Card for Model ID"
# Lines that PEFT and transformers add to the template of their cards.
_ADDED_TO_TEMPLATE = (
    "This is the model card of a 🤗 transformers model",
    "### Framework versions",
    "- PEFT ",
    "## Training procedure",
    "The following `bitsandbytes` quantization config",
)


def write_card(
    folder: str | os.PathLike[str],
    *,
    repo_id: str | None = None,
    license: str | None = None,
    space: str | None = None,
    base: str | None = None,
    on_hub: str | None = None,
    card: Path | None = None,
) -> Path:
    """Write or renew `README.md` in the folder of an adapter or a supervision set, and an adapter's `.eval_results`.

    What somebody wrote into the card stays: text outside of the marked sections, and fields of the front matter. The
    results are those of the evaluations inside the folder, see `add_evaluation`.

    Args:
        folder: with an `adapter_config.json` or made by `drllm search`.
        repo_id: its name on the Hub, for the code on the card, `owner/name` or `owner/name/folder`; None is the
            folder's name.
        license: identifier such as "apache-2.0"; None leaves what the card says.
        space: the Space with an adapter's page, `owner/name`; None leaves what the card says.
        base: name of the base model on the Hub, over what an older card says; None leaves that.
        on_hub: the card of that repository, which somebody may have edited there.
        card: where the card is, if not in the folder.

    Raises:
        DrLLMError: the folder holds neither; `space` is no name or not for an adapter; a report was measured with
            other weights or is damaged; the front matter is no YAML; somebody wrote into the card both here and on the
            Hub.
    """
    folder = Path(folder)
    path = card or folder / CARD
    name = repo_id or folder.resolve().name
    kind: type[RepoCard] = DatasetCard if (folder / INFO).is_file() else ModelCard
    here = path.read_text(encoding="utf-8") if path.is_file() else None
    older = [_parsed(kind, text, path) for text in (here, on_hub) if text is not None]
    if space is not None:
        HubName.parse(space)
        if not (folder / CONFIG_NAME).is_file():
            raise DrLLMError(f"a Space shows an adapter, but {folder} holds none; leave out --space.")
    if (folder / CONFIG_NAME).is_file():
        config = load_adapter_config(str(folder))
        measured = evaluations(folder, config)
        space = space or next((str(old.data[_SPACE]) for old in older if old.data.get(_SPACE)), None)
        new = adapter_card(folder, config, name, measured, space)
        write_eval_results(folder, measured)
    elif (folder / INFO).is_file():
        new = supervision_card(folder, name)
    elif (folder / UNROLLED).is_file():
        new = checkpoint_card(folder, name)
    else:
        found = (
            f"has neither {CONFIG_NAME} nor {INFO} nor {UNROLLED}" if folder.is_dir() else "is no folder that exists"
        )
        raise DrLLMError(
            f"{folder} must hold an adapter, a supervision set or a checkpoint of drllm export to have a card, "
            f"but it {found}; correct the name."
        )
    written = [old for old in older if _own_words(old) not in ("", _own_words(new)) and not _is_template(old)]
    if len(written) == 2 and _own_words(written[0]) != _own_words(written[1]):
        raise DrLLMError(
            f"the card must be edited in one place, but {path} and the one on the Hub were both changed; put one's "
            f"changes into the other, and make the two files equal."
        )
    if written:
        contents = {section["name"]: section[0] for section in _SECTION.finditer(new.text)}
        text = _SECTION.sub(lambda section: contents.get(section["name"], section[0]), written[0].text)
        new.text = _OF_OLDER_CARDS.sub("", text)
    _keep_fields(new, older)
    if license is not None:
        new.data["license"] = license
    if space is not None:
        new.data[_SPACE] = space
    if base is not None and kind is ModelCard:
        new.data["base_model"] = base
    write_text_atomic(path, str(new).rstrip() + "\n")
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


def _parsed(kind: type[RepoCard], text: str, path: Path) -> RepoCard:
    # Whatever YAML makes of it.
    with refusing(
        f"the card {path} must begin with front matter in YAML between lines of ---, but reading it failed",
        "correct it, or delete the file to have it written anew",
    ):
        return kind(text.replace("\r\n", "\n"), ignore_metadata_errors=True)


def _own_words(card: RepoCard) -> str:
    """What a card says outside of its sections, but for our notes and what PEFT adds whenever it saves."""
    text = _NOTE.sub("", _SECTION.sub(lambda section: section["name"], card.text))
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith(_ADDED_TO_TEMPLATE))


def _is_template(card: RepoCard) -> bool:
    """Whether the text is what PEFT or transformers wrote: nobody's words, so it gives way."""
    data: Any = card.data
    templates = (ModelCard.from_template(fields) for fields in (ModelCardData(), data))
    known = {line.strip() for template in templates for line in template.text.splitlines()}
    return _TEMPLATE in card.text and known.issuperset(_own_words(card).splitlines())


def _keep_fields(new: RepoCard, older: Sequence[RepoCard]) -> None:
    """Put what older cards say into the front matter of the new one; of two that differ the first counts."""
    theirs: dict[Any, Any] = {}
    for old in reversed(older):
        for name, value in old.data.to_dict().items():
            if name in ("tags", "datasets"):
                more = [item for item in value or () if not item.startswith("base_model:")]
                new.data[name] = list(dict.fromkeys([*(new.data.get(name) or ()), *more]))
            elif value is not None and name not in _MEASURED and (name != "base_model" or is_hub_name(str(value))):
                new.data[name] = value
        results: list[Any] = old.data.get("eval_results") or []
        theirs |= {result.unique_identifier: result for result in results if result.source_url != MEASURED_BY}
        if theirs and new.data.get("model_name") is None:
            new.data["model_name"] = old.data.get("model_name")
    if theirs:
        new.data["eval_results"] = [*(new.data.get("eval_results") or ()), *theirs.values()]
