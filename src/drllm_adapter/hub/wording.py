"""What both kinds of cards say in the same words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..demo import BASE as DEMO_BASE

TAGS = ["dr-llm", "layer-routing", "dynamic-depth"]
_DEMO = DEMO_BASE.parts[-3:]


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


def is_hub_name(base: str) -> bool:
    """Whether a model's name can be one on the Hub, and no folder's."""
    return base != "" and not Path(base).is_absolute() and not Path(base).is_dir()


def base_name(base: str) -> str:
    """A short name of the base model, in a folder or on the Hub."""
    if is_demo(base):
        return "the demo base"
    return Path(base).name or "an unnamed model"


def is_demo(base: str) -> bool:
    """Whether it is the small model that ships in the package, wherever that was installed."""
    return Path(base).parts[-len(_DEMO) :] == _DEMO


def base_link(base: str, revision: str | None) -> str:
    """The base with its revision, as a link where it is on the Hub; never the path of a folder on somebody's disk."""
    if is_demo(base):
        return "the small model that ships with drllm-adapter"
    if not is_hub_name(base):
        return f"`{base_name(base)}` in a folder of its own"
    at = f" at revision `{revision[:12]}`" if revision else ""
    return f"[{base}](https://huggingface.co/{base}){at}"


def template(name: str) -> str:
    """The text of a file in `hub_cards/`."""
    # Inside the wheel the templates lie in the package, in a checkout beside its sources.
    package = Path(__file__).parents[1]
    path = package / "hub_cards" / name
    return (path if path.exists() else package.parents[1] / "hub_cards" / name).read_text(encoding="utf-8")
