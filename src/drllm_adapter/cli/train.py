"""`drllm train`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import DrLLMError
from ..supervision.labels import LABEL_RULES
from .config import Config
from .options import (
    PAPER,
    RUNNING,
    Base,
    Device,
    Dtype,
    Json,
    Log,
    LogFormat,
    MaxLoss,
    MeanPasses,
    Overwrite,
    ReportTo,
    Resume,
    Seed,
    Threads,
    claim,
    console,
    log_stream,
    numbers,
    one_of,
    say_next,
    write_json,
)


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
        one_of(
            LABEL_RULES, f"What is learnt of the paths tried; the rule of the search by default. {LABEL_RULES.help()}."
        ),
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0, help="Price of L block passes; that of the search by default.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the questions, at most.")] = 25,
    learning_rate: Annotated[
        float, typer.Option(min=1e-8, max=10, help="Peak of the cosine schedule of AdamW.", rich_help_panel=PAPER)
    ] = 1e-3,
    weight_decay: Annotated[
        float, typer.Option(min=0, max=10, help="Weight decay of AdamW.", rich_help_panel=PAPER)
    ] = 0.01,
    warmup_steps: Annotated[
        int, typer.Option(min=0, help="Linear warm-up; at most a tenth of all steps.", rich_help_panel=PAPER)
    ] = 500,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions a step.", rich_help_panel=PAPER)] = 16,
    gamma: Annotated[
        float,
        typer.Option(min=0, max=10, help="Gamma of the focal loss (labels price and shortest).", rich_help_panel=PAPER),
    ] = 2.0,
    beta: Annotated[
        float,
        typer.Option(
            min=0, max=0.999999, help="Beta of the class weights (labels price and shortest).", rich_help_panel=PAPER
        ),
    ] = 0.999,
    validation_share: Annotated[
        float, typer.Option(min=0.001, max=0.9, help="Share of the questions held out.", rich_help_panel=PAPER)
    ] = 0.1,
    patience: Annotated[
        int,
        typer.Option(min=1, help="Epochs without a lower validation loss before stopping.", rich_help_panel=PAPER),
    ] = 5,
    num_windows: Annotated[
        int, typer.Option(min=1, help="Windows the prompt is pooled into.", rich_help_panel=PAPER)
    ] = 8,
    router_width: Annotated[
        int, typer.Option(min=1, help="Width of the routers' hidden layer.", rich_help_panel=PAPER)
    ] = 128,
    layers: Annotated[
        str | None,
        typer.Option(help="Blocks that get a router, such as 4,5,6; all of them by default.", rich_help_panel=PAPER),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps what the routers read, for the next training.", rich_help_panel=RUNNING),
    ] = None,
    max_loss: MaxLoss = None,
    mean_passes: MeanPasses = None,
    seed: Seed = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
    json_file: Json = None,
    log: Log = LogFormat.bar,
    report_to: ReportTo = None,
    dtype: Dtype = "auto",
    device: Device = None,
    threads: Threads = None,
    config_file: Config = None,
) -> None:
    """Train routers on a supervision set (base frozen, paths forced) and save them as a PEFT adapter.

    Example: drllm train paths --output adapter
    """
    from ..jobs import BEGUN
    from ..models.download import (
        ADAPTER,
        TRAINING_REPORT,
        check_model_name,
        fetch_supervision,
        load_training_record,
    )
    from ..supervision import read_search_info

    if (supervision is None) == (supervision_option is None):
        raise DrLLMError("a training needs one supervision set, as the argument or with --supervision; name it.")
    source = supervision or supervision_option or ""
    routed = numbers(layers, "--layers", "block indices", "4,5,6")
    make_room = claim(output, ADAPTER, BEGUN, TRAINING_REPORT, resume=resume, overwrite=overwrite)
    if base is not None:
        check_model_name(base)
    read_search_info(fetch_supervision(source))

    from ..adapter.config import DrLLMConfig
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
        layers_to_transform=routed,
    )
    make_room()
    result = train_adapter(
        source,
        output,
        base=base,
        rule=labels,
        price=price,
        config=config,
        adapter=adapter,
        features=features,
        max_loss=max_loss,
        mean_passes=mean_passes,
        dtype=dtype,
        device=device,
        resume=resume,
        console=console,
        log=log_stream(log),
    )
    if result is None:  # the main process speaks
        return
    record = load_training_record(output)
    write_json(json_file, record)
    say_next(output, record["supervision"])
