"""`drllm generate`."""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from ..errors import DrLLMError
from ..tasks import decoded, without_surrogates
from .groups import Place, unfolded
from .options import RUNNING, Base, Json, Seed, check_adapter, console, write_json

if TYPE_CHECKING:
    from ..workflow.generate import Generated

notes = Console(stderr=True, markup=False, emoji=False)
"""What is said about an answer goes to standard error, so that standard output is the answer."""


@unfolded
def generate(
    adapter: Annotated[str, typer.Argument(help="The adapter: a folder, or owner/name[@branch] on the Hub.")],
    text: Annotated[str | None, typer.Argument(help="The prompt; - or nothing reads standard input.")] = None,
    file: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Read the prompt from it.")] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="Answer many prompts, a line of JSON each: a .txt with a prompt a line, or JSON lines, CSV or Parquet "
            "with prompt, question or messages."
        ),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Talk: a turn a line, an empty line ends it.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Answer with the base model as well.")] = False,
    lossless: Annotated[
        bool,
        typer.Option("--lossless", help="The base model's answer: the path only drafts it. Says what was accepted."),
    ] = False,
    show_path: Annotated[
        bool, typer.Option("--show-path", help="Draw the path of the prompt, block by block.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of the answer.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy; above it draws.")] = 0.0,
    depth_control: Annotated[
        float | None, typer.Option(min=-1, max=1, help="The paper's p; as saved by default.")
    ] = None,
    layer_budget: Annotated[int | None, typer.Option(min=0, help="Most block passes that the prompt may take.")] = None,
    chat_template: Annotated[
        bool | None,
        typer.Option(
            "--chat-template/--no-chat-template",
            help="Word prompts by the tokenizer's template, or take them as they are; as in training by default.",
            rich_help_panel=RUNNING,
        ),
    ] = None,
    base: Base = None,
    seed: Seed = 0,
    json_file: Json = None,
    *,
    place: Place,
) -> None:
    """Text in, text out, along the path that the routers choose for the prompt.

    Example: drllm generate adapter "What do plants need to grow?" --show-path
    """
    from ..models.download import load_training_record

    ways = {"an argument": text not in (None, "-"), "--file": file, "--prompts": prompts, "--chat": chat}
    given = [name for name, value in ways.items() if value]
    if len(given) > 1:
        raise DrLLMError(f"a prompt must come from one place, but {' and '.join(given)} were given; drop one.")
    check_adapter(adapter, base)
    wording = load_training_record(adapter).get("supervision", {}).get("wording")
    note = ""
    if chat_template is not None or chat:
        wording = "plain" if chat_template is False else "chat"
    elif wording not in (None, "chat"):
        how = "as 'Question: ...', without a chat template" if wording == "question" else "without a chat template"
        note = f"As in training: prompts are worded {how}."
    asked: list[Any] = []
    if prompts is not None:
        from ..tasks import load_questions

        asked = [item.messages or item.prompt or item.question
                 for item in load_questions("jsonl", prompts, with_answers=False)]  # fmt: skip
    elif not chat:
        asked = [_prompt_text(text, file)]

    from transformers import TextStreamer

    from ..adapter.steering import set_depth_control, set_layer_budget
    from ..models.loading import load_routed
    from ..workflow.generate import generate_text

    model, tokenizer = load_routed(adapter, base=base, **place.model)
    if note:
        notes.print(note, style="dim", highlight=False)
    if depth_control is not None:
        set_depth_control(model, depth_control)
    if layer_budget is not None:
        set_layer_budget(model, layer_budget)

    def answer(prompt: Any, *, routed: bool = True, stream: bool = True) -> "Generated":
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None
        return generate_text(
            model, tokenizer, prompt, wording=wording, max_new_tokens=max_new_tokens, temperature=temperature,
            seed=seed, routed=routed, lossless=lossless, streamer=streamer,
        )  # fmt: skip

    if prompts is not None:
        answers = []
        for prompt in asked:
            found = answer(prompt, stream=False).to_json()
            if compare:
                found["base"] = answer(prompt, routed=False, stream=False).to_json()
            print(json.dumps(found, ensure_ascii=False), flush=True)
            answers.append(found)
        write_json(json_file, answers)
        return
    if chat:
        write_json(json_file, _talk(answer, show_path, compare))
        return
    if compare:
        notes.print("routed", style="bold")
    routed = answer(asked[0])
    _describe(routed, show_path)
    facts = routed.to_json()
    if compare:
        notes.print("base", style="bold")
        in_base = answer(asked[0], routed=False)
        _describe(in_base, False)
        notes.print(
            "The answers are the same." if in_base.text == routed.text else "The answers differ.", highlight=False
        )
        facts["base"] = in_base.to_json()
    write_json(json_file, facts)


def _talk(answer: "Callable[..., Generated]", show_path: bool, compare: bool) -> list[dict[str, Any]]:
    """One conversation with the routed model, and its answers; routers read all of it at every turn, as a prompt."""
    turns: list[tuple[str, str]] = []
    answers = []
    for line in _lines():
        said = [*turns, ("user", line)]
        found = answer(said)
        turns = [*said, ("assistant", found.text)]
        _describe(found, show_path)
        answers.append(found.to_json())
        if compare:
            notes.print("base", style="bold")
            in_base = answer(said, routed=False)
            _describe(in_base, False)
            answers[-1]["base"] = in_base.to_json()
    return answers


def _lines() -> Iterable[str]:
    while True:
        if sys.stdin.isatty():
            notes.print("> ", end="", style="bold")
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


def _describe(generated: "Generated", show_path: bool) -> None:
    if show_path:
        console.print(Text("path  ").append_text(path_in_colour(generated.decisions)), soft_wrap=True)
    speed = generated.tokens / generated.seconds
    notes.print(
        f"{generated.tokens} tokens in {generated.seconds:.1f} s ({speed:.1f} a second), "
        f"{sum(generated.decisions)} of {len(generated.decisions)} block passes",
        style="dim",
        highlight=False,
    )
    done = generated.speculation
    if done is not None:
        notes.print(
            f"lossless: {done.accepted} of {done.drafted} drafted tokens accepted, "
            f"{done.tokens / done.verifications:.2f} tokens a pass of all blocks",
            style="dim",
            highlight=False,
        )


def path_in_colour(decisions: tuple[int, ...]) -> Text:
    """The path as `decisions.draw` has it, what is skipped dim and what is repeated bright; plain where it must be."""
    from ..decisions import draw

    drawn = draw(decisions)
    if not console.encoding.startswith("utf"):
        drawn = drawn.replace("·", ".").replace("×", "x")
    text = Text(drawn)
    text.highlight_regex(r"[·.]+", "dim")
    text.highlight_regex(r"\d+[×x]2", "bold bright_green")
    return text


def _prompt_text(text: str | None, file: Path | None) -> str:
    if file is not None:
        try:
            prompt = decoded(file.read_bytes(), str(file))
        except OSError as error:
            raise DrLLMError(
                f"the prompt file {file} must be a readable text file, but reading it failed; correct the name."
            ) from error
    elif text is None or text == "-":
        stream = getattr(sys.stdin, "buffer", None)  # text alone where another program stands in for it
        prompt = sys.stdin.read() if stream is None else decoded(stream.read(), "standard input")
    else:
        prompt = without_surrogates(text, "the prompt")
    if prompt is not text:
        # The line end that `echo` and editors put behind a text is no part of it.
        prompt = prompt.removesuffix("\n").removesuffix("\r")
    if not prompt.strip():
        raise DrLLMError("a prompt must have text, but it is empty; give it as an argument, a file or standard input.")
    return prompt
