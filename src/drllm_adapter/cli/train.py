"""`drllm train`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..errors import DrLLMError
from ..supervision.labels import LABEL_RULES
from .config import Config
from .groups import Job, NewRouters, unfolded
from .options import RUNNING, Base, MaxLoss, MeanPasses, constant, one_of, say_next, write_json


@dataclass(frozen=True)
class Constants:
    """Those of a `TrainingConfig`."""

    epochs: Annotated[int, typer.Option(min=1, help="Passes over the questions, at most.")] = 25
    learning_rate: Annotated[float, constant(min=1e-8, max=10, help="Peak of the cosine schedule of AdamW.")] = 1e-3
    weight_decay: Annotated[float, constant(min=0, max=10, help="Weight decay of AdamW.")] = 0.01
    warmup_steps: Annotated[int, constant(min=0, help="Linear warm-up; at most a tenth of all steps.")] = 500
    batch_size: Annotated[int, constant(min=1, help="Questions a step.")] = 16
    gamma: Annotated[
        float,
        constant(min=0, max=10, help="Gamma of the focal loss (labels price and shortest)."),
    ] = 2.0
    beta: Annotated[
        float,
        constant(min=0, max=0.999999, help="Beta of the class weights (labels price and shortest)."),
    ] = 0.999
    validation_share: Annotated[float, constant(min=0.001, max=0.9, help="Share of the questions held out.")] = 0.1
    patience: Annotated[
        int,
        constant(min=1, help="Epochs without a lower validation loss before stopping."),
    ] = 5


@unfolded
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
    features: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps what the routers read, for the next training.", rich_help_panel=RUNNING),
    ] = None,
    max_loss: MaxLoss = None,
    mean_passes: MeanPasses = None,
    *,
    constants: Constants,
    routers: NewRouters,
    job: Job,
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
    settings = routers.settings()
    make_room = job.claim(output, ADAPTER, BEGUN, TRAINING_REPORT)
    if base is not None:
        check_model_name(base)
    read_search_info(fetch_supervision(source))

    from ..adapter.config import DrLLMConfig
    from ..training import TrainingConfig
    from ..workflow import train_adapter

    config = TrainingConfig(**asdict(constants), seed=job.seed)
    adapter = DrLLMConfig(**settings)
    make_room()
    result = train_adapter(
        source, output, base=base, rule=labels, price=price, config=config, adapter=adapter, features=features,
        max_loss=max_loss, mean_passes=mean_passes, **job.running,
    )  # fmt: skip
    if result is None:  # the main process speaks
        return
    record = load_training_record(output)
    write_json(job.json_file, record)
    say_next(output, record["supervision"])
