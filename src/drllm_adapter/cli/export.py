"""`drllm export`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import DrLLMError
from .options import Base, Device, Json, Overwrite, Threads, console, say, write_json


def export(
    source: Annotated[str, typer.Argument(help="Base model or adapter: a folder, or owner/name[@branch] on the Hub.")],
    output: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    path: Annotated[str | None, typer.Option(help="The path: blocks and ranges, '0-9 12 12 13-29'.")] = None,
    skip: Annotated[list[int] | None, typer.Option(help="A block to leave out; may be given several times.")] = None,
    repeat: Annotated[list[int] | None, typer.Option(help="A block to run twice; may be given several times.")] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Folder of drllm probe, or of drllm eval with --baselines: its best static path."),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="The path that an adapter takes for this prompt; of several, the most frequent one."),
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="File with such prompts, one a line.")] = None,
    base: Base = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat-template/--no-chat-template", help="Word prompts by the tokenizer's; as in training by default."
        ),
    ] = None,
    max_shard: Annotated[str, typer.Option(help="Largest file of weights; also the memory that it takes.")] = "5GB",
    hub: Annotated[str | None, typer.Option(help="Push it to this repository: owner/name[@branch].")] = None,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Of a new repository; the account's default otherwise.")
    ] = None,
    overwrite: Overwrite = False,
    json_file: Json = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Write one path for all prompts as an ordinary checkpoint, which loads everywhere without this package.

    Its weights are the base's, block by block along the path, and its outputs those of the base with that path forced,
    bit for bit. Blocks come in their order, each at most twice.

    Example: drllm export HuggingFaceTB/SmolLM2-135M-Instruct --skip 10 --skip 11 --repeat 12 --output smaller
    """
    from ..files import check_claim
    from ..models.download import ADAPTER_CONFIG, CHECKPOINT, check_model_name

    check_claim(output, CHECKPOINT, resume=overwrite)
    if base is not None or not (Path(source) / ADAPTER_CONFIG).is_file():
        check_model_name(base or source)
    from ..decisions import draw
    from ..hub.push import prepare_push
    from ..hub.push import push as upload
    from ..workflow.export import export_path

    asked = [*(prompt or ()), *(_lines(prompts) if prompts is not None else ())]
    chosen = export_path(
        source, output, path=path, skip=skip or (), repeat=repeat or (), report=report, prompts=asked, base=base,
        chat=chat, max_shard=max_shard, device=device, overwrite=overwrite,
    )  # fmt: skip
    console.print(f"path  {draw(chosen.decisions)}, chosen {chosen.how}", highlight=False, soft_wrap=True)
    say(f"Saved {output}.")
    facts = {"decisions": list(chosen.decisions), "chosen": chosen.how, "measured": chosen.measured}
    if hub is not None:
        with prepare_push(output, hub) as plan:
            facts["commit"], facts["url"] = upload(plan, private=private)
            say(f"Pushed: {facts['url']}")
    write_json(json_file, facts)


def _lines(file: Path) -> list[str]:
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DrLLMError(
            f"the file of prompts {file} must be a readable text file, but reading it failed; correct the name."
        ) from error
    if not lines:
        raise DrLLMError(f"the file of prompts {file} must have a prompt a line, but it is empty; correct it.")
    return lines
