"""What both kinds of cards say in the same words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..demo import is_demo
from ..errors import DrLLMError
from ..models.download import is_hub_name, split_revision

# By this the results that were taken from reports are told from those that somebody wrote into a card.
MEASURED_BY = "https://pypi.org/project/drllm-adapter/"
TAGS = ["dr-llm", "layer-routing", "dynamic-depth"]


def source_names(sources: Sequence[Mapping[str, Any]]) -> str:
    """Datasets with their configuration and split, or files, as `tasks.sources_of` names them."""
    return " + ".join(
        " ".join(
            [source["name"], *(f"({part})" for part in (source["config"],) if part), source["split"] or ""]
        ).strip()
        for source in sources
    )


def constants(values: Mapping[str, Any]) -> str:
    """Names and values in a line."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def facts(values: Mapping[str, Any]) -> str:
    """A table of names and values."""
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in values.items())


def base_name(base: str) -> str:
    """A short name of the base model, in a folder or on the Hub."""
    if is_demo(base):
        return "the demo base"
    return Path(base).name or "an unnamed model"


def base_link(base: str, revision: str | None) -> str:
    """The base with its revision, as a link where it is on the Hub; never the path of a folder on somebody's disk."""
    if is_demo(base):
        return "the small model that ships with drllm-adapter"
    if not is_hub_name(base):
        return f"`{base_name(base)}` in a folder of its own"
    name, asked = split_revision(base)
    at = f" at revision `{(revision or asked or '')[:12]}`" if revision or asked else ""
    return f"[{name}](https://huggingface.co/{name}){at}"


def dataset_link(name: str) -> str:
    """A set of paths on the Hub, `owner/name` or `owner/name@revision`."""
    return f"[{name}](https://huggingface.co/datasets/{split_revision(name)[0]})"


def base_option(base: str) -> str:
    """What a command needs beside the name of an adapter or a set whose base is in a folder."""
    return "" if is_hub_name(base) or is_demo(base) else f" --base {base_name(base)}"


def _template(name: str) -> str:
    # Inside the wheel the templates lie in the package, in a checkout beside its sources.
    package = Path(__file__).parents[1]
    places = [root / "hub_cards" / name for root in (package, package.parents[1])]
    for path in places:
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise DrLLMError(
        f"the template of the cards must be in {places[0]} or in {places[1]}, but it is in neither; install "
        f"drllm-adapter with pip, or copy hub_cards/ along with src/."
    )


# Read when this module is loaded: where they are missing, no long work begins that would end in a card.
ADAPTER_TEMPLATE = _template("adapter.md")
SUPERVISION_TEMPLATE = _template("supervision.md")
CHECKPOINT_TEMPLATE = _template("checkpoint.md")
