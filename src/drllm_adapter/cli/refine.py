"""`drllm refine`."""

from pathlib import Path
from typing import Annotated

import typer

from ..supervision.rewards import REWARDS, find_reward
from .config import Config
from .options import (
    PAPER,
    RUNNING,
    AsTrained,
    Base,
    Data,
    Device,
    Dtype,
    Grader,
    Json,
    Limit,
    Log,
    LogFormat,
    MaxLoss,
    MaxNewTokens,
    MeanPasses,
    Overwrite,
    ReportTo,
    Resume,
    Seed,
    SkipBad,
    SkipFirst,
    Split,
    Task,
    TemplateAsTrained,
    Threads,
    as_trained,
    check_adapter,
    claim,
    console,
    left_out,
    log_stream,
    numbers,
    one_of,
    questions,
    say_next,
    worded_by_template,
    write_json,
)


def refine(
    start: Annotated[
        str, typer.Argument(help="Adapter to refine, or a base model to begin with; a folder or a name on the Hub.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the adapter, its report and its curves.")],
    task: Task = None,
    data: Data = None,
    split: Split = None,
    mode: AsTrained = None,
    limit: Limit = None,
    skip: SkipFirst = 0,
    base: Base = None,
    reward: Annotated[
        str | None,
        typer.Option(
            help=f"What a path is worth. {REWARDS.help()}; or file.py:function of your own, which is given prompt and "
            f"generated text (mode free). By default agreement in the mode self, else probability.",
        ),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(
            min=0, help="Price of L block passes, in reward; 1 in the mode self and 0.4 in others by default."
        ),
    ] = None,
    init: Annotated[
        str | None,
        one_of(
            ("skips", "identity"),
            "Routers of a base model. skips: learnt from a few random paths of each prompt (mode self, its default). "
            "identity: every block executes.",
        ),
    ] = None,
    max_loss: MaxLoss = None,
    mean_passes: MeanPasses = None,
    max_steps: Annotated[
        int | None,
        typer.Option(min=0, help="Gradient steps on policy; 0 with --init skips, which may be enough, else 60."),
    ] = None,
    validation_share: Annotated[float, typer.Option(min=0.001, max=0.9, help="Share of the prompts held out.")] = 0.2,
    num_generations: Annotated[int, typer.Option(min=2, help="Paths sampled for each prompt of a step.")] = 8,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts a step.", rich_help_panel=PAPER)] = 32,
    learning_rate: Annotated[
        float, typer.Option(min=0, help="Peak of the cosine schedule of AdamW.", rich_help_panel=PAPER)
    ] = 5e-4,
    entropy_coef: Annotated[
        float, typer.Option(min=0, help="Entropy bonus at the first step; falls to 0.", rich_help_panel=PAPER)
    ] = 0.01,
    num_windows: Annotated[
        int, typer.Option(min=1, help="Windows the prompt is pooled into (base model).", rich_help_panel=PAPER)
    ] = 8,
    rms_norm: Annotated[
        bool,
        typer.Option(
            "--rms-norm/--no-rms-norm",
            help="Normalise each token's states before pooling (base model).",
            rich_help_panel=PAPER,
        ),
    ] = True,
    router_width: Annotated[
        int, typer.Option(min=1, help="Width of the routers' hidden layer (base model).", rich_help_panel=PAPER)
    ] = 128,
    layers: Annotated[
        str | None,
        typer.Option(help="Blocks that get a router, such as 4,5,6 (base model).", rich_help_panel=PAPER),
    ] = None,
    max_new_tokens: MaxNewTokens = None,
    grader: Grader = None,
    skip_bad: SkipBad = False,
    chat_template: TemplateAsTrained = None,
    rows: Annotated[int, typer.Option(min=1, help="Most rows a block runs at once.", rich_help_panel=RUNNING)] = 64,
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
    """Refine routers on policy: they try paths of their own choosing and learn from what came of them.

    Example: drllm refine adapter --task arc --mode cloze --output refined
    """
    from ..jobs import BEGUN
    from ..models.download import ADAPTER, TRAINING_REPORT, check_model_name, is_adapter, load_training_record

    routed = numbers(layers, "--layers", "block indices", "4,5,6")
    make_room = claim(output, ADAPTER, BEGUN, TRAINING_REPORT, resume=resume, overwrite=overwrite)
    if is_adapter(start):
        check_adapter(start, base)
        task, mode, grader = as_trained(start, task, mode, grader)
        if chat_template is None:
            chat_template = worded_by_template(start)
    else:
        check_model_name(start)
    mode = mode or "letter"
    if reward is not None:
        find_reward(reward)
    bad = left_out(skip_bad)
    asked = questions(task, data, split, limit, skip, seed, mode=mode, grader=grader, skip_bad=bad)

    from ..adapter.config import DrLLMConfig
    from ..training import RefineConfig
    from ..workflow import refine_adapter

    if price is None:
        price = 1.0 if mode == "self" else 0.4
    if max_steps is None:
        learns_skips = init == "skips" or (init is None and mode == "self" and not is_adapter(start))
        max_steps = 0 if learns_skips else 60

    make_room()
    result = refine_adapter(
        start,
        asked,
        output,
        mode=mode,
        init=init,
        reward=reward,
        max_loss=max_loss,
        mean_passes=mean_passes,
        config=RefineConfig(
            max_steps=max_steps,
            batch_size=batch_size,
            num_generations=num_generations,
            learning_rate=learning_rate,
            entropy_coef=entropy_coef,
            price=price,
            validation_share=validation_share,
            seed=seed,
        ),
        adapter=DrLLMConfig(
            num_windows=num_windows, router_width=router_width, rms_norm=rms_norm, layers_to_transform=routed
        ),
        base=base,
        max_new_tokens=max_new_tokens,
        chat_template=chat_template is not False,
        grader=grader,
        skip_bad=bad,
        batch_size=rows,
        resume=resume,
        dtype=dtype,
        device=device,
        console=console,
        log=log_stream(log),
    )
    if bad is not None:
        bad.say()
    if result is not None:
        record = load_training_record(output)
        write_json(json_file, record)
        say_next(output, record["supervision"])
