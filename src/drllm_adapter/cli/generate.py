"""`drllm generate`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import DrLLMError
from .options import Base, Device, Dtype, Json, Seed, Threads, check_adapter, console, write_json


def generate(
    adapter: Annotated[str, typer.Argument(help="The adapter: a folder, or owner/name[@branch] on the Hub.")],
    text: Annotated[str | None, typer.Argument(help="The prompt; - or nothing reads standard input.")] = None,
    file: Annotated[Path | None, typer.Option(help="Read the prompt from this file.")] = None,
    base: Base = None,
    chat: Annotated[
        bool | None, typer.Option(help="Put the prompt into the chat template; yes by default where there is one.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of the answer.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy; above it draws.")] = 0.0,
    show_path: Annotated[
        bool, typer.Option("--show-path", help="Draw the path of the prompt, block by block.")
    ] = False,
    depth_control: Annotated[
        float | None, typer.Option(min=-1, max=1, help="The paper's p; as saved by default.")
    ] = None,
    layer_budget: Annotated[int | None, typer.Option(help="Most block passes that the prompt may take.")] = None,
    seed: Seed = 0,
    json_file: Json = None,
    dtype: Dtype = "auto",
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Text in, text out, along the path that the routers choose for the prompt.

    Example: drllm generate adapter "What do plants need to grow?" --show-path
    """
    prompt = _prompt_text(text, file)
    check_adapter(adapter, base)
    from ..decisions import draw
    from ..models.loading import load_routed
    from ..workflow.generate import generate_text

    model, tokenizer = load_routed(adapter, base=base, dtype=dtype, device=device)
    generated = generate_text(
        model,
        tokenizer,
        prompt,
        chat=chat,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        depth_control=depth_control,
        layer_budget=layer_budget,
        seed=seed,
    )
    print(generated.text)
    if show_path:
        console.print(f"path  {draw(generated.decisions)}", highlight=False, soft_wrap=True)
    write_json(json_file, generated.to_json())


def _prompt_text(text: str | None, file: Path | None) -> str:
    if text not in (None, "-") and file is not None:
        raise DrLLMError("a prompt must come from one place, but both an argument and --file were given; drop one.")
    if file is not None:
        try:
            prompt = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DrLLMError(
                f"the prompt file {file} must be a readable text file, but reading it failed; correct the name."
            ) from error
    else:
        prompt = sys.stdin.read() if text in (None, "-") else str(text)
    if prompt is not text:
        # The line end that `echo` and editors put behind a text is no part of it.
        prompt = prompt.removesuffix("\n").removesuffix("\r")
    if not prompt.strip():
        raise DrLLMError("a prompt must have text, but it is empty; give it as an argument, a file or standard input.")
    return prompt
