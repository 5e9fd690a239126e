"""Every command of `drllm`. What a command needs is imported when it runs, so that `--help` is quick."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from .. import __version__
from ..errors import DrLLMError

if TYPE_CHECKING:
    from ..tasks import Question

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Routers that make a frozen language model skip, execute or repeat its own blocks (Dr.LLM, arXiv 2510.12773).",
)
console = Console()

Task = Annotated[str, typer.Option(help="arc (multiple choice), dart (free maths), jsonl (either), khop (made here).")]
Data = Annotated[
    str | None,
    typer.Option(help="JSON-lines or Parquet file, or a dataset on the Hub; the task's own dataset by default."),
]
Split = Annotated[str | None, typer.Option(help="Split of a dataset on the Hub; train by default.")]
Limit = Annotated[int | None, typer.Option(help="Use at most so many questions.")]
SkipFirst = Annotated[int, typer.Option(help="Leave out so many questions at the beginning.")]
Mode = Annotated[
    str,
    typer.Option(help="What an answer is: letter, cloze (likelihood of each choice's text) or free (generated)."),
]
MaxNewTokens = Annotated[int | None, typer.Option(help="Length of a generated answer; the paper's by default.")]
Dtype = Annotated[str, typer.Option(help="auto (the faster one on a CPU), float32, bfloat16 or float16.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; the first GPU by default, if there is one.")]
Seed = Annotated[int, typer.Option(help="Same seed, same result.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write what is printed to this file, as JSON.")]
Base = Annotated[
    str | None, typer.Option(help="Base model, when it is not where the adapter or the supervision set says.")
]


def _print_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def search(
    base: Annotated[str, typer.Argument(help="The frozen model: a folder or a name on the Hub.")],
    output: Annotated[Path, typer.Option(help="Folder for the supervision set.")],
    task: Task = "arc",
    data: Data = None,
    mode: Mode = "letter",
    split: Split = None,
    limit: Limit = None,
    skip: SkipFirst = 0,
    simulations: Annotated[int, typer.Option(help="Simulations a question.")] = 50,
    labels: Annotated[
        str, typer.Option(help="Label rule: price (p(right answer) against passes) or shortest (the published one).")
    ] = "price",
    price: Annotated[float, typer.Option(help="Price of L block passes, in probability of the right answer.")] = 0.4,
    exploration: Annotated[float, typer.Option(help="c of the UCB.")] = 1.8,
    length_penalty: Annotated[
        float | None, typer.Option(help="lambda of the UCB; 1 for price, 3 for shortest by default.")
    ] = None,
    random_child: Annotated[float, typer.Option(help="Chance of following a random child.")] = 0.1,
    max_skip: Annotated[int, typer.Option(help="Most consecutive positions left out by one edit.")] = 2,
    reward: Annotated[
        str | None, typer.Option(help="probability or correct (0/1); goes with the label rule by default.")
    ] = None,
    early_stop: Annotated[
        bool | None,
        typer.Option(help="Stop a question once fixed or 2 passes shorter; goes with the label rule by default."),
    ] = None,
    bundle: Annotated[int, typer.Option(help="Questions searched side by side; memory grows with it.")] = 16,
    max_new_tokens: MaxNewTokens = None,
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted search in OUTPUT.")] = False,
    dtype: Dtype = "auto",
    device: Device = None,
) -> None:
    """Search better layer paths for every question of a file (MCTS) and save what was tried.

    Example: drllm search HuggingFaceTB/SmolLM2-135M-Instruct --task arc --data questions.jsonl --output paths
    """
    from ..search import SearchConfig
    from ..workflow import Labels, search_paths

    changes: dict[str, Any] = {
        "simulations": simulations,
        "exploration": exploration,
        "random_child": random_child,
        "max_skip": max_skip,
        "seed": seed,
    }
    for name, value in (("length_penalty", length_penalty), ("reward", reward), ("early_stop", early_stop)):
        if value is not None:
            changes[name] = value
    config = SearchConfig.for_rule(labels, **changes)
    summary = search_paths(
        base,
        _questions(task, data, split, limit, skip, seed),
        output,
        mode=mode,
        config=config,
        labels=Labels(labels, price),
        resume=resume,
        bundle=bundle,
        max_new_tokens=max_new_tokens,
        dtype=dtype,
        device=device,
        console=console,
    )
    console.print(summary.table())
    _say(f"Saved in {output}. Next: drllm train {output} --output adapter")


@app.command()
def train(
    supervision: Annotated[Path, typer.Argument(help="Folder that drllm search wrote.")],
    output: Annotated[Path, typer.Option(help="Folder for the adapter, its training report and its curves.")],
    base: Base = None,
    labels: Annotated[
        str | None, typer.Option(help="Label rule: price or shortest; that of the search by default.")
    ] = None,
    price: Annotated[float | None, typer.Option(help="Price of L block passes; that of the search by default.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the questions, at most.")] = 25,
    learning_rate: Annotated[float, typer.Option(help="Peak of the cosine schedule of AdamW.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of AdamW.")] = 0.01,
    warmup_steps: Annotated[int, typer.Option(help="Linear warm-up; at most a tenth of all steps.")] = 500,
    batch_size: Annotated[int, typer.Option(help="Questions a step.")] = 16,
    gamma: Annotated[float, typer.Option(help="Gamma of the focal loss.")] = 2.0,
    beta: Annotated[float, typer.Option(help="Beta of the effective number of samples.")] = 0.999,
    validation_share: Annotated[float, typer.Option(help="Share of the questions held out.")] = 0.1,
    patience: Annotated[int, typer.Option(help="Epochs without a lower validation loss before stopping.")] = 5,
    num_windows: Annotated[int, typer.Option(help="Windows the prompt is pooled into.")] = 8,
    router_width: Annotated[int, typer.Option(help="Width of the routers' hidden layer.")] = 128,
    layers: Annotated[
        str | None, typer.Option(help="Blocks that get a router, such as 4,5,6; all of them by default.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="Folder that keeps what the routers read, for the next training.")
    ] = None,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = None,
) -> None:
    """Train routers on a supervision set (focal loss, base frozen, paths forced) and save them as a PEFT adapter.

    Example: drllm train paths --output adapter
    """
    from ..adapter.config import DrLLMConfig
    from ..search import read_search_info
    from ..training import TrainingConfig
    from ..workflow import Labels, train_adapter

    info = read_search_info(supervision)
    config = TrainingConfig(
        epochs=epochs,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup_steps=warmup_steps,
        batch_size=batch_size,
        gamma=gamma,
        beta=beta,
        validation_share=validation_share,
        patience=patience,
        seed=seed,
        hidden=router_width,
    )
    adapter = DrLLMConfig(
        num_windows=num_windows, router_width=router_width, layers_to_transform=_numbers(layers, "--layers")
    )
    train_adapter(
        supervision,
        output,
        base=base,
        labels=Labels(labels or info["rule"], info["price"] if price is None else price),
        config=config,
        adapter=adapter,
        features=features,
        dtype=dtype,
        device=device,
        console=console,
    )
    _say(f"Saved in {output}. Next: drllm eval {output} --data QUESTIONS --output evaluation")


@app.command("eval")
def evaluate(
    adapter: Annotated[str, typer.Argument(help="The adapter: a folder or a name on the Hub.")],
    output: Annotated[Path | None, typer.Option(help="Folder for report.json and layers.png.")] = None,
    base: Base = None,
    task: Task = "arc",
    data: Data = None,
    mode: Mode = "letter",
    split: Split = None,
    limit: Limit = None,
    skip: SkipFirst = 0,
    depth_control: Annotated[
        float | None, typer.Option(min=-1, max=1, help="The paper's p; as saved by default (-0.5 is as trained).")
    ] = None,
    layer_budget: Annotated[int | None, typer.Option(help="Never more than so many block passes for a prompt.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions a forward pass.")] = 16,
    max_new_tokens: MaxNewTokens = None,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = None,
) -> None:
    """Compare the base with the routed model on the same questions: accuracy, passes, decisions by block.

    Example: drllm eval adapter --task arc --data test.jsonl --output evaluation
    """
    from ..workflow import evaluate_adapter

    report = evaluate_adapter(
        adapter,
        _questions(task, data, split, limit, skip, seed),
        output,
        mode=mode,
        base=base,
        batch_size=batch_size,
        depth_control=depth_control,
        layer_budget=layer_budget,
        max_new_tokens=max_new_tokens,
        dtype=dtype,
        device=device,
        console=console,
    )
    console.print(report.table())
    if output is not None:
        _say(f"Saved in {output}: report.json, layers.png.")


@app.command()
def generate(
    adapter: Annotated[str, typer.Argument(help="The adapter: a folder or a name on the Hub.")],
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
    layer_budget: Annotated[int | None, typer.Option(help="Never more than so many block passes.")] = None,
    seed: Seed = 0,
    json_file: Json = None,
    dtype: Dtype = "auto",
    device: Device = None,
) -> None:
    """Text in, text out, along the path that the routers choose for the prompt.

    Example: drllm generate adapter "What do plants need to grow?" --show-path
    """
    prompt = _prompt_text(text, file)
    from ..decisions import draw
    from ..generation import generate_text
    from ..loading import load_routed

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
    _write_json(json_file, generated.to_json())


@app.command()
def info(
    adapter: Annotated[str, typer.Argument(help="The adapter: a folder or a name on the Hub.")],
    json_file: Json = None,
) -> None:
    """Say what an adapter fits, how large it is, its constants, and how it was trained."""
    from ..loading import load_adapter_config

    config = load_adapter_config(adapter)
    num_blocks, hidden = config.num_blocks, config.hidden_size
    routed = [] if num_blocks is None else config.routed_blocks(num_blocks)
    width = config.router_width
    weights = None if hidden is None else len(routed) * (hidden * width + width + 3 * width + 3)
    facts = {
        "fits": f"{config.base_model_type}, {num_blocks} blocks of width {hidden}",
        "base": config.base_model_name_or_path,
        "routers": f"{len(routed)} of {num_blocks} blocks, width {width}, {config.num_windows} windows",
        "weights": None if weights is None else f"{weights:,} ({4 * weights / 1e6:.1f} MB in float32)",
        "depth control": config.depth_control,
        "layer budget": config.layer_budget,
        "checksum": config.checksum,
    }
    for name, value in facts.items():
        console.print(f"{name:14}{'-' if value is None else value}", highlight=False, soft_wrap=True)
    for name, value in _training_facts(config.training):
        console.print(f"{name:14}{value}", highlight=False, soft_wrap=True)
    _write_json(json_file, {**facts, "training": config.training})


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for report.json, layers.png, adapter/ and what led to them.")],
    seed: Seed = 0,
    questions: Annotated[int, typer.Option(min=20, help="Questions to search and train on.")] = 1500,
    test_questions: Annotated[int, typer.Option(min=20, help="Questions to evaluate on.")] = 700,
    simulations: Annotated[int, typer.Option(min=1, help="Simulations a question.")] = 100,
) -> None:
    """Search, train, evaluate, save, load and generate with a small model that ships in the package; offline.

    Example: drllm demo --output demo
    """
    from ..demo.run import run_demo

    run_demo(
        output, seed=seed, questions=questions, test_questions=test_questions, simulations=simulations, console=console
    )


@app.command()
def bench(
    base: Annotated[str | None, typer.Argument(help="A model; the small one of the package by default.")] = None,
    shape: Annotated[
        str | None,
        typer.Option(help="Random weights instead: smollm2-135m, llama-3.2-1b or llama-3.2-3b."),
    ] = None,
    output: Annotated[Path, typer.Option(help="JSON file for the figures.")] = Path("bench.json"),
    repetitions: Annotated[int, typer.Option(min=3, help="Interleaved repetitions; medians are reported.")] = 15,
    decode_tokens: Annotated[int, typer.Option(min=1, help="Tokens decoded in a repetition.")] = 32,
    prompt_tokens: Annotated[int, typer.Option(min=8, help="Length of the prompt that the routers read.")] = 512,
    task: Task = "khop",
    data: Data = None,
    mode: Mode = "cloze",
    paths: Annotated[int, typer.Option(min=1, help="Paths scored in the comparison of the search.")] = 64,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    dtype: Dtype = "auto",
    device: Device = None,
) -> None:
    """Measure what routing costs, as ratios side by side; exits with code 1 when a goal is missed.

    Example: drllm bench --shape llama-3.2-3b --dtype bfloat16 --device cuda
    """
    from ..bench import run_bench

    results = run_bench(
        base,
        shape=shape,
        output=output,
        questions=_questions(task, data, None, 16, 0, 0),
        mode=mode,
        repetitions=repetitions,
        decode_tokens=decode_tokens,
        prompt_tokens=prompt_tokens,
        paths=paths,
        threads=threads,
        dtype=dtype,
        device=device,
        console=console,
    )
    _say(f"Saved in {output}.")
    if not all(item.met for item in results):
        raise typer.Exit(1)


def main() -> None:
    """Run the command; a mistake of the user ends in one sentence and exit code 2."""
    _quiet()
    try:
        app()
    except DrLLMError as error:
        print(f"drllm: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("drllm: interrupted; a search goes on with --resume.", file=sys.stderr)
        sys.exit(130)


def _quiet() -> None:
    """Libraries' own progress bars and notices would bury ours; set before they are imported."""
    import os
    import warnings

    warnings.simplefilter("ignore", FutureWarning)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _say(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)


def _questions(
    task: str, data: str | None, split: str | None, limit: int | None, skip: int, seed: int
) -> "list[Question]":
    from ..tasks import load_questions

    return load_questions(task, data, split=split, limit=limit, skip=skip, seed=seed)


def _numbers(text: str | None, option: str) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise DrLLMError(
            f"{option} must be block indices with commas between them, such as 4,5,6, but {text!r} was given; "
            f"correct it."
        ) from error


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
    if not prompt.strip():
        raise DrLLMError("a prompt must have text, but it is empty; give it as an argument, a file or standard input.")
    return prompt


def _training_facts(training: dict[str, Any] | None) -> list[tuple[str, str]]:
    if not training:
        return [("training", "not recorded")]
    supervision = training.get("supervision", {})
    metrics = training.get("metrics", {}).get("routers", {})
    labels = supervision.get("labels", {})
    search = supervision.get("search", {})
    return [
        (
            "trained on",
            f"{supervision.get('questions')} questions ({', '.join(supervision.get('tasks', []))}, "
            f"{supervision.get('mode')}), {labels.get('rule')} labels at price {labels.get('price')}, "
            f"{search.get('simulations')} simulations, seed {search.get('seed')}",
        ),
        (
            "validation",
            f"macro F1 {metrics.get('macro_f1', float('nan')):.3f}, {metrics.get('mean_passes', float('nan')):.2f} "
            f"passes, best epoch {training.get('best_epoch')}",
        ),
        ("made with", f"drllm-adapter {training.get('version')}"),
    ]


def _write_json(path: Path | None, value: Any) -> None:
    if path is not None:
        from ..files import write_json_atomic

        write_json_atomic(path, json.loads(json.dumps(value)))
