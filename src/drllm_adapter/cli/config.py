"""`--config`: options of a command from its section of a YAML file, below those that are typed."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import DrLLMError
from .options import RUNNING


def _read(context: typer.Context, name: str | None) -> str | None:
    """Make the file's section for this command the defaults of its options, before the others are read."""
    if name is None:
        return None
    sections = _sections(name)
    # Commands share one file, so that an experiment is one: each reads its own section.
    commands = getattr(context.parent.command, "commands", {}) if context.parent is not None else {}
    for section in sections:
        if section not in commands:
            raise DrLLMError(
                f"the config {name} must have sections named after commands ({', '.join(commands)}), but it has "
                f"{section!r}; correct it."
            )
    command = str(context.info_name)
    values = sections.get(command)
    if not isinstance(values, dict):
        raise DrLLMError(
            f"the config {name} must have a section {command!r} with options of drllm {command}, but it has "
            f"{'no options there' if command in sections else 'none'}; add it or leave out --config."
        )
    known = {parameter.name for parameter in context.command.params} - {"config_file", "help"}
    defaults = {str(key).replace("-", "_"): value for key, value in values.items()}
    for key, value in defaults.items():
        if key not in known:
            raise DrLLMError(
                f"the config {name} must hold options of drllm {command}, but {key!r} is none; correct it, "
                f"drllm {command} --help lists them."
            )
        if not isinstance(value, (str, int, float)):
            raise DrLLMError(
                f"the config {name} must give a text, a number, true or false for each option, but {key!r} is "
                f"{value!r}; correct it."
            )
    context.default_map = {**(context.default_map or {}), **defaults}
    return name


def _sections(name: str) -> dict[str, Any]:
    import yaml

    built_in = {Path(item.name).stem: item for item in files("drllm_adapter.recipes").iterdir()}
    if Path(name).is_file():
        source: Any = Path(name)
    elif name in built_in and built_in[name].name.endswith(".yaml"):
        source = built_in[name]
    else:
        recipes = sorted(stem for stem, item in built_in.items() if item.name.endswith(".yaml"))
        raise DrLLMError(
            f"the config {name} must be a YAML file or one of the recipes {', '.join(recipes)}, but it is neither; "
            f"correct the name."
        )
    try:
        content = yaml.safe_load(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise DrLLMError(f"the config {name} must be YAML, but reading it failed ({reason}); correct it.") from error
    if not isinstance(content, dict):
        raise DrLLMError(
            f"the config {name} must have a section for each command, but it has none; write the options below "
            f"search:, train: or eval:."
        )
    return content


Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        is_eager=True,
        callback=_read,
        help="YAML file with options below search:, train: or eval:, or a recipe of the package: paper-arc, "
        "paper-dart. Options on the command line override it.",
        rich_help_panel=RUNNING,
    ),
]
