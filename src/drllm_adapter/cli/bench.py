"""`drllm bench`: one command a subject; each prints figures and writes JSON; a missed goal is exit code 1."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DrLLMError
from .groups import Place, unfolded
from .help import Command
from .options import (
    AsTrained,
    Base,
    Data,
    Device,
    Dtype,
    Mode,
    Task,
    Threads,
    as_trained,
    console,
    numbers,
    questions,
    say,
    writable,
)

if TYPE_CHECKING:
    from rich.table import Table

    from ..bench.timing import Comparison

bench = typer.Typer(no_args_is_help=True, help="Measure what routing, searching and training cost; JSON beside it.")

Model = Annotated[str | None, typer.Argument(help="A model; the small one of the package by default.")]
SHAPE_NAMES = "smollm2-135m, llama-3.2-1b, llama-3.2-3b or llama-3.1-70b"  # of `bench.models`, which imports torch
Shape = Annotated[str | None, typer.Option(help=f"Random weights instead: {SHAPE_NAMES}.")]
Output = Annotated[Path, typer.Option(callback=writable, help="JSON file for the figures.")]


@bench.command(cls=Command)
@unfolded
def routing(
    base: Model = None,
    shape: Shape = None,
    output: Output = Path("bench.json"),
    repetitions: Annotated[int, typer.Option(min=3, help="Interleaved repetitions; medians are reported.")] = 15,
    decode_tokens: Annotated[int, typer.Option(min=1, help="Tokens decoded in a repetition.")] = 32,
    prompt_tokens: Annotated[int, typer.Option(min=8, help="Length of the prompt that the routers read.")] = 512,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Also compiled decoding with a static cache; compiling takes minutes.")
    ] = False,
    *,
    place: Place,
) -> None:
    """Decoding along a forced path and in mixed batches, all EXECUTE, and prompts with routers, against models without.

    Example: drllm bench routing --shape llama-3.2-3b --dtype bfloat16 --device cuda
    """
    from ..bench.models import model_to_measure
    from ..bench.routing import bench_routing

    model, _ = model_to_measure(base, shape, **place.model)
    results = bench_routing(
        model, repetitions=repetitions, prompt_tokens=prompt_tokens, decode_tokens=decode_tokens, compiled=compiled,
        console=console,
    )  # fmt: skip
    _compared(results, output, model, shape or base or "demo", repetitions=repetitions)


@bench.command(cls=Command)
@unfolded
def serve(
    adapter: Annotated[str, typer.Argument(help="The adapter: a folder, or owner/name[@branch] on the Hub.")],
    base: Base = None,
    output: Output = Path("bench_serve.json"),
    requests: Annotated[int, typer.Option(min=4, help="Requests at a time.")] = 32,
    prompt_tokens: Annotated[int, typer.Option(min=8, help="Length of their prompts.")] = 48,
    decode_tokens: Annotated[int, typer.Option(min=1, help="Tokens generated for each.")] = 48,
    passes: Annotated[int | None, typer.Option(min=1, help="Of the paths; 23 of 30 blocks.")] = None,
    repetitions: Annotated[int, typer.Option(min=3, help="Interleaved repetitions; medians are reported.")] = 5,
    threads: Threads = None,
    dtype: Dtype = "auto",
) -> None:
    """Routed requests in vLLM against the base in plain vLLM: all EXECUTE, along paths, and by the adapter's routers.

    Example: VLLM_CPU_KVCACHE_SPACE=1 drllm bench serve adapter --threads 1 --dtype bfloat16
    """
    from ..bench.serve import bench_serve

    results, facts = bench_serve(
        adapter, base=base, requests=requests, prompt_tokens=prompt_tokens, decode_tokens=decode_tokens,
        passes=passes, repetitions=repetitions, dtype=dtype,
    )  # fmt: skip
    from ..bench.timing import report, table

    say(f"{facts['tokens a second, plain vLLM']:.0f} tokens a second in plain vLLM.")
    _finish(table(results), output, {**facts, **report(results)})


@bench.command(cls=Command)
@unfolded
def search(
    base: Model = None,
    shape: Shape = None,
    output: Output = Path("bench_search.json"),
    task: Task = "khop",
    data: Data = None,
    mode: Annotated[
        str, typer.Option(help="Modes with commas between them: cloze, letter, free, self.")
    ] = "cloze,letter",
    limit: Annotated[int, typer.Option(min=1, help="Questions searched.")] = 64,
    simulations: Annotated[int, typer.Option(min=1, help="Simulations a question.")] = 50,
    bundle: Annotated[int, typer.Option(min=1, help="Questions searched side by side.")] = 64,
    memory: Annotated[float, typer.Option(min=0, help="Gigabytes of hidden states kept.")] = 2.0,
    sample: Annotated[int, typer.Option(min=1, help="Paths that are scored the published way as well.")] = 64,
    *,
    place: Place,
) -> None:
    """A whole search against the published way: one question, one path, one `generate` call at a time.

    Example: drllm bench search HuggingFaceTB/SmolLM2-135M-Instruct --task arc --data questions.jsonl
    """
    from ..search import SearchConfig

    config = SearchConfig(simulations=simulations)
    asked = {name: questions(task, data, None, limit, 0, 0, mode=name) for name in mode.split(",")}
    from ..bench.models import model_to_measure
    from ..bench.search import bench_search, speed_table
    from ..bench.timing import environment, report
    from ..tasks import build_prompts

    model, tokenizer = model_to_measure(base, shape, **place.model)
    results = []
    for name in asked:
        prompts = build_prompts(asked[name], name, tokenizer)
        results.append(
            bench_search(
                model, tokenizer, prompts, config=config, bundle=bundle, memory=memory, sample=sample, console=console
            )
        )
    facts = {"model": shape or base or "demo", **environment(model), "bundle": bundle, "memory": memory}
    ratios = {"ratio": {item.mode: item.ratio for item in results}}
    _finish(speed_table(results), output, {**facts, **ratios, **report(results)})


@bench.command(cls=Command)
@unfolded
def refine(
    base: Model = None,
    shape: Shape = None,
    output: Output = Path("bench_refine.json"),
    task: Task = "khop",
    data: Data = None,
    mode: Mode = "cloze",
    limit: Annotated[int, typer.Option(min=1, help="Prompts of the step.")] = 32,
    num_generations: Annotated[int, typer.Option(min=2, help="Paths sampled for each.")] = 8,
    repetitions: Annotated[int, typer.Option(min=3, help="Interleaved repetitions; medians are reported.")] = 5,
    *,
    place: Place,
) -> None:
    """A step of refinement - sampling paths and scoring them - against each path through the model's own forward.

    Example: drllm bench refine HuggingFaceTB/SmolLM2-135M-Instruct --task jsonl --mode self --data prompts.jsonl
    """
    asked = questions(task, data, None, limit, 0, 0, mode=mode)
    from ..bench.models import model_to_measure
    from ..bench.refine import bench_refine
    from ..tasks import build_prompts

    model, tokenizer = model_to_measure(base, shape, **place.model)
    prompts = build_prompts(asked, mode, tokenizer)
    result = bench_refine(model, tokenizer, prompts, generations=num_generations, repetitions=repetitions)
    _compared([result], output, model, shape or base or "demo", repetitions=repetitions)


@bench.command(cls=Command)
@unfolded
def train(
    base: Model = None,
    shape: Shape = None,
    output: Output = Path("bench_train.json"),
    task: Task = "khop",
    data: Data = None,
    mode: Mode = "cloze",
    limit: Annotated[int, typer.Option(min=20, help="Questions to train on.")] = 512,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of both ways.")] = 25,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions a step.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the published way that are timed, then scaled.")] = 6,
    threads: Threads = None,
    dtype: Dtype = "float32",
    device: Device = None,
) -> None:
    """A whole training against the published way: the model forward and the routers backward in every epoch.

    Example: drllm bench train HuggingFaceTB/SmolLM2-135M-Instruct --task arc --data questions.jsonl
    """
    asked = questions(task, data, None, limit, 0, 0, mode=mode)
    from ..bench.models import model_to_measure
    from ..bench.timing import environment
    from ..bench.train import bench_train
    from ..tasks import build_prompts

    model, tokenizer = model_to_measure(base, shape, dtype=dtype, device=device)
    prompts = build_prompts(asked, mode, tokenizer)
    result = bench_train(model, tokenizer, prompts, epochs=epochs, batch_size=batch_size, steps=steps, console=console)
    _finish(result.table(), output, {"model": shape or base or "demo", **environment(model), **result.to_json()})


@bench.command(cls=Command)
@unfolded
def cost(
    shape: Annotated[str, typer.Option(help=f"Of which one block is made, with random weights: {SHAPE_NAMES}.")],
    output: Output = Path("bench_cost.json"),
    questions: Annotated[int, typer.Option(min=1, help="To search.")] = 1_000_000,
    tokens: Annotated[int, typer.Option(min=1, help="Prompt and answers of a question.")] = 80,
    simulations: Annotated[int, typer.Option(min=1, help="Paths a question.")] = 50,
    avoided: Annotated[
        float, typer.Option(min=0, max=1, help="Share of block passes avoided, as a search prints it.")
    ] = 0.5,
    devices: Annotated[int, typer.Option(min=1, help="Like this one, side by side.")] = 1,
    rows: Annotated[int, typer.Option(min=1, help="Questions in a batch.")] = 16,
    repetitions: Annotated[int, typer.Option(min=1, help="Batches; the median is reported.")] = 5,
    threads: Threads = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    device: Device = None,
) -> None:
    """What a search would cost with a model of any size: one block is measured on this device, the rest is arithmetic.

    Example: drllm bench cost --shape llama-3.1-70b --questions 1000000 --devices 8 --device cuda
    """
    import torch

    from ..bench.cost import SearchSize, cost_table, measure_block, to_json
    from ..bench.models import SHAPES, random_model
    from ..bench.timing import environment

    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = random_model(shape, getattr(torch, dtype), place, num_hidden_layers=1, vocab_size=256)
    measured = measure_block(model, rows, tokens, repetitions, hidden=not console.is_terminal)
    blocks = SHAPES[shape]["num_hidden_layers"]
    size = SearchSize(blocks, questions, tokens, simulations, avoided, devices)
    facts = {name: value for name, value in environment(model).items() if name not in ("parameters", "blocks")}
    _finish(cost_table(measured, size), output, {"shape": shape, **facts, **to_json(measured, size)})


@bench.command(cls=Command)
@unfolded
def adapter(
    adapter: Annotated[str, typer.Argument(help="The adapter: a folder or a name on the Hub.")],
    output: Output = Path("bench_adapter.json"),
    base: Base = None,
    task: Task = None,
    data: Data = None,
    mode: AsTrained = None,
    limit: Annotated[int, typer.Option(min=1, help="Prompts, the first of the questions.")] = 16,
    batch_sizes: Annotated[str, typer.Option(help="Prompts side by side, several with commas.")] = "1,16",
    repetitions: Annotated[int, typer.Option(min=3, help="Interleaved repetitions; medians are reported.")] = 5,
    decode_tokens: Annotated[int, typer.Option(min=1, help="Tokens decoded after each prompt.")] = 16,
    *,
    place: Place,
) -> None:
    """Prefill and decoding of a trained adapter against its base on real prompts, beside the ratio of passes.

    Example: drllm bench adapter adapter --task arc --data test.jsonl
    """
    sizes = numbers(batch_sizes, "--batch-sizes", "whole numbers", "1,16") or []
    if min(sizes) < 1:
        raise DrLLMError(f"--batch-sizes must be numbers from 1, but {batch_sizes!r} was given; correct it.")
    task, mode, _ = as_trained(adapter, task, mode)
    asked = questions(task, data, "test", limit, 0, 0, mode=mode)
    from ..bench.adapter import bench_adapter, table
    from ..bench.timing import environment
    from ..models.loading import load_routed
    from ..tasks import build_prompts

    model, tokenizer = load_routed(adapter, base=base, **place.model)
    results = bench_adapter(
        model, tokenizer, build_prompts(asked, mode, tokenizer), batch_sizes=sizes, decode_tokens=decode_tokens,
        repetitions=repetitions, console=console,
    )  # fmt: skip
    settings = {"adapter": adapter, "task": task, "mode": mode, "repetitions": repetitions}
    found = {"results": [item.to_json() for item in results]}
    _finish(table(results), output, {**settings, **environment(model), **found})


@bench.command(cls=Command)
@unfolded
def lossless(
    adapter: Annotated[str | None, typer.Argument(help="The adapter: a folder or a name on the Hub.")] = None,
    shape: Annotated[str | None, typer.Option(help=f"Costs alone, of random weights instead: {SHAPE_NAMES}.")] = None,
    skip: Annotated[int, typer.Option(min=1, help="Blocks that drafts leave out, with --shape.")] = 5,
    context: Annotated[int, typer.Option(min=1, help="Tokens in the cache, with --shape.")] = 512,
    output: Output = Path("bench_lossless.json"),
    base: Base = None,
    task: Task = None,
    data: Data = None,
    mode: Mode = "free",
    limit: Annotated[int, typer.Option(min=1, help="Prompts, the first of the questions.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at a time.")] = 1,
    depth_control: Annotated[
        float | None, typer.Option(min=-1, max=1, help="The paper's p; as saved by default.")
    ] = None,
    layer_budget: Annotated[int | None, typer.Option(min=0, help="Most block passes that a prompt may take.")] = None,
    repetitions: Annotated[int, typer.Option(min=3, help="Of each cost; medians are reported.")] = 15,
    *,
    place: Place,
) -> None:
    """Lossless decoding against the base: acceptance, costs of drafting and verifying, and whether that pays here.

    Example: drllm bench lossless adapter --task arc --data test.jsonl
    """
    if (adapter is None) == (shape is None):
        raise DrLLMError("either an adapter or --shape must be given, but both or neither were; give one of them.")
    import torch

    from ..adapter.steering import set_depth_control, set_layer_budget
    from ..bench.lossless import bench_lossless, costs_of_shape, costs_table, to_json, verdict
    from ..bench.timing import environment
    from ..models.loading import load_routed
    from ..tasks import build_prompts

    hidden, speed, facts = not console.is_terminal, None, {}
    if shape is not None:
        on = place.device or ("cuda" if torch.cuda.is_available() else "cpu")
        kind = torch.bfloat16 if place.dtype == "auto" else getattr(torch, place.dtype)
        costs = costs_of_shape(
            shape, skip, dtype=kind, device=on, context=context, repetitions=repetitions, hidden=hidden
        )
        facts = {"shape": shape, "dtype": str(kind).removeprefix("torch."), "threads": torch.get_num_threads()}
    else:
        assert adapter is not None
        asked = questions(task, data, None, limit, 0, 0, mode=mode)
        model, tokenizer = load_routed(adapter, base=base, **place.model)
        if depth_control is not None:
            set_depth_control(model, depth_control)
        if layer_budget is not None:
            set_layer_budget(model, layer_budget)
        speed, costs = bench_lossless(
            model, tokenizer, build_prompts(asked, mode, tokenizer), new_tokens=max_new_tokens,
            repetitions=repetitions, hidden=hidden, batch_size=batch_size,
        )  # fmt: skip
        facts = {"adapter": adapter, "task": task, "mode": mode, **environment(model)}
    say(verdict(costs, speed))
    _finish(costs_table(costs), output, {**facts, **to_json(costs, speed)})
    if speed is not None and speed.apart and facts["dtype"] == "float32":
        raise typer.Exit(1)


def _compared(results: "Sequence[Comparison]", output: Path, model: Any, name: str, **settings: Any) -> None:
    from ..bench.timing import environment, report, table

    _finish(table(results), output, {"model": name, **environment(model), **settings, **report(results)})


def _finish(shown: "Table", output: Path, found: dict[str, Any]) -> None:
    """Show and save what was found; a goal that was missed ends the command with 1."""
    from ..files import write_json_atomic

    console.print(shown)
    write_json_atomic(output, found)
    say(f"Saved in {output}.")
    if not all(item.get("met", True) for item in [found, *found.get("results", ())]):
        raise typer.Exit(1)
