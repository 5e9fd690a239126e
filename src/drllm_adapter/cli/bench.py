"""`drllm bench`: one command a subject; each prints ratios, writes them as JSON and exits with 1 on a missed goal."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Data, Device, Dtype, Mode, Task, console, questions, say

if TYPE_CHECKING:
    from ..bench.timing import Comparison

bench = typer.Typer(no_args_is_help=True, help="Measure speed side by side, as ratios with goals; JSON beside it.")

Model = Annotated[str | None, typer.Argument(help="A model; the small one of the package by default.")]
Shape = Annotated[str | None, typer.Option(help="Random weights instead: smollm2-135m, llama-3.2-1b or llama-3.2-3b.")]
Output = Annotated[Path, typer.Option(help="JSON file for the figures.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.")]


@bench.command()
def routing(
    base: Model = None,
    shape: Shape = None,
    output: Output = Path("bench.json"),
    repetitions: Annotated[int, typer.Option(min=3, help="Interleaved repetitions; medians are reported.")] = 15,
    decode_tokens: Annotated[int, typer.Option(min=1, help="Tokens decoded in a repetition.")] = 32,
    prompt_tokens: Annotated[int, typer.Option(min=8, help="Length of the prompt that the routers read.")] = 512,
    threads: Threads = None,
    dtype: Dtype = "auto",
    device: Device = None,
) -> None:
    """Decoding along a forced path against the unrolled model, all EXECUTE and the routers against the base.

    Example: drllm bench routing --shape llama-3.2-3b --dtype bfloat16 --device cuda
    """
    from ..bench.models import model_to_measure
    from ..bench.routing import bench_routing

    _use_threads(threads)
    model, _ = model_to_measure(base, shape, dtype=dtype, device=device)
    results = bench_routing(
        model, repetitions=repetitions, prompt_tokens=prompt_tokens, decode_tokens=decode_tokens, console=console
    )
    _finish(results, output, model, shape or base or "demo", repetitions=repetitions)


@bench.command()
def search(
    base: Model = None,
    output: Output = Path("bench_search.json"),
    task: Task = "khop",
    data: Data = None,
    mode: Mode = "cloze",
    paths: Annotated[int, typer.Option(min=1, help="Paths scored.")] = 64,
    repetitions: Annotated[int, typer.Option(min=3, help="Interleaved repetitions; medians are reported.")] = 3,
    threads: Threads = None,
    dtype: Dtype = "auto",
    device: Device = None,
) -> None:
    """Paths scored as the search does against one-at-a-time `generate` calls along unrolled models.

    Example: drllm bench search HuggingFaceTB/SmolLM2-135M-Instruct --task arc --data questions.jsonl
    """
    from ..bench.models import model_to_measure
    from ..bench.search import bench_search
    from ..tasks import build_prompt

    _use_threads(threads)
    model, tokenizer = model_to_measure(base, None, dtype=dtype, device=device)
    prompts = [build_prompt(question, mode, tokenizer) for question in questions(task, data, None, 16, 0, 0)]
    result = bench_search(model, tokenizer, prompts, paths=paths, repetitions=repetitions, console=console)
    _finish([result], output, model, base or "demo", repetitions=repetitions, mode=mode)


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _finish(results: "Sequence[Comparison]", output: Path, model: Any, name: str, **settings: Any) -> None:
    from ..bench.timing import environment, table, write_report

    console.print(table(results))
    write_report(output, results, model=name, **environment(model), **settings)
    say(f"Saved in {output}.")
    if not all(item.met for item in results):
        raise typer.Exit(1)
