"""`drllm train`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import DrLLMError
from ..supervision.labels import LABEL_RULES
from .config import Config
from .options import Base, Device, Dtype, Log, LogFormat, Resume, Seed, console, log_stream, numbers, say


def train(
    output: Annotated[Path, typer.Option(help="Folder for the adapter, its training report and its curves.")],
    supervision: Annotated[
        str | None,
        typer.Argument(
            help="Folder that drllm search wrote, a Parquet file of such rows, or a dataset on the Hub (owner/name, "
            "owner/name@branch)."
        ),
    ] = None,
    supervision_option: Annotated[
        str | None, typer.Option("--supervision", help="The same, as an option.", show_default=False)
    ] = None,
    base: Base = None,
    labels: Annotated[
        str | None,
        typer.Option(help=f"What is learnt of the paths tried: {LABEL_RULES.help()}; that of the search by default."),
    ] = None,
    price: Annotated[float | None, typer.Option(help="Price of L block passes; that of the search by default.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the questions, at most.")] = 25,
    learning_rate: Annotated[float, typer.Option(help="Peak of the cosine schedule of AdamW.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of AdamW.")] = 0.01,
    warmup_steps: Annotated[int, typer.Option(help="Linear warm-up; at most a tenth of all steps.")] = 500,
    batch_size: Annotated[int, typer.Option(help="Questions a step.")] = 16,
    gamma: Annotated[float, typer.Option(help="Gamma of the focal loss (labels price and shortest).")] = 2.0,
    beta: Annotated[float, typer.Option(help="Beta of the class weights (labels price and shortest).")] = 0.999,
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
    resume: Resume = False,
    log: Log = LogFormat.bar,
    dtype: Dtype = "auto",
    device: Device = None,
    config_file: Config = None,
) -> None:
    """Train routers on a supervision set (base frozen, paths forced) and save them as a PEFT adapter.

    Example: drllm train paths --output adapter
    """
    from ..adapter.config import DrLLMConfig
    from ..models.loading import load_training_record
    from ..tasks import TASKS
    from ..training import TrainingConfig
    from ..workflow import train_adapter

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
    )
    adapter = DrLLMConfig(
        num_windows=num_windows,
        router_width=router_width,
        layers_to_transform=numbers(layers, "--layers", "block indices", "4,5,6"),
    )
    if (supervision is None) == (supervision_option is None):
        raise DrLLMError("a training needs one supervision set, as the argument or with --supervision; name it.")
    result = train_adapter(
        supervision or supervision_option or "",
        output,
        base=base,
        rule=labels,
        price=price,
        config=config,
        adapter=adapter,
        features=features,
        dtype=dtype,
        device=device,
        resume=resume,
        console=console,
        log=log_stream(log),
    )
    if result is None:  # the main process speaks
        return
    learnt = load_training_record(output)["supervision"]
    # Names that rows of the task jsonl give themselves are no tasks of a command.
    task = learnt["tasks"][0] if learnt["tasks"] in [[name] for name in TASKS] else "jsonl"
    data = "--seed ANOTHER_SEED" if task == "khop" else "--data QUESTIONS"
    say(
        f"Saved in {output}. Next: drllm eval {output} --task {task} --mode {learnt['mode']} {data} --output evaluation"
    )
