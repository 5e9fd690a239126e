"""`drllm refine`."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from ..errors import DrLLMError
from ..supervision.rewards import REWARDS, find_reward
from .config import Config
from .groups import Asked, Job, NewRouters, unfolded
from .options import (
    RUNNING,
    AsTrained,
    Base,
    Grader,
    MaxLoss,
    MaxNewTokens,
    MeanPasses,
    SkipBad,
    TemplateAsTrained,
    as_trained,
    check_adapter,
    constant,
    left_out,
    one_of,
    questions,
    say_next,
    worded_by_template,
    write_json,
)


@dataclass(frozen=True)
class Constants:
    """Those of a `RefineConfig` that do not depend on the mode."""

    validation_share: Annotated[float, constant(min=0.001, max=0.9, help="Share of the prompts held out.")] = 0.2
    num_generations: Annotated[int, constant(min=2, help="Paths sampled for each prompt of a step.")] = 8
    batch_size: Annotated[int, constant(min=1, help="Prompts a step.")] = 32
    learning_rate: Annotated[float, constant(min=0, help="Peak of the cosine schedule of AdamW.")] = 5e-4
    entropy_coef: Annotated[float, constant(min=0, help="Entropy bonus at the first step; falls to 0.")] = 0.01


@unfolded
def refine(
    start: Annotated[
        str, typer.Argument(help="Adapter to refine, or a base model to begin with; a folder or a name on the Hub.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the adapter, its report and its curves.")],
    *,
    asked: Asked,
    mode: AsTrained = None,
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
    rms_norm: Annotated[
        bool,
        constant("--rms-norm/--no-rms-norm", help="Normalise each token's states before pooling (base model)."),
    ] = True,
    max_new_tokens: MaxNewTokens = None,
    grader: Grader = None,
    skip_bad: SkipBad = False,
    chat_template: TemplateAsTrained = None,
    rows: Annotated[int, typer.Option(min=1, help="Most rows a block runs at once.", rich_help_panel=RUNNING)] = 64,
    constants: Constants,
    routers: NewRouters,
    job: Job,
    config_file: Config = None,
) -> None:
    """Refine routers on policy: they try paths of their own choosing and learn from what came of them.

    Example: drllm refine adapter --task arc --mode cloze --output refined
    """
    from ..jobs import BEGUN
    from ..models.download import ADAPTER, TRAINING_REPORT, check_model_name, is_adapter, load_training_record

    settings = routers.settings()
    make_room = job.claim(output, ADAPTER, BEGUN, TRAINING_REPORT)
    begins_with_adapter = is_adapter(start)
    if begins_with_adapter:
        check_adapter(start, base)
        task, mode, grader = as_trained(start, asked.task, mode, grader)
        asked = replace(asked, task=task)
        if chat_template is None:
            chat_template = worded_by_template(start)
    else:
        check_model_name(start)
    mode = mode or "letter"
    if reward is not None:
        find_reward(reward)
    unfit = {
        "--base": base is not None and not begins_with_adapter and "names the base of an adapter, but a base was given",
        "--init": init is not None and begins_with_adapter and "makes routers for a base, but an adapter was given",
        "--init skips": init == "skips" and mode != "self" and f"needs --mode self, but the mode is {mode}",
        "--reward agreement": reward == "agreement" and mode != "self" and f"needs --mode self, but the mode is {mode}",
        "--max-loss": max_loss is not None and mode == "free" and "is no limit for generated answers (--mode free)",
        "--mean-passes": mean_passes is not None and mode == "free" and "is none for generated answers (--mode free)",
    }
    for option, why in unfit.items():
        if why:
            raise DrLLMError(f"{option} {why}; leave it out or change what it goes with.")
    bad = left_out(skip_bad)
    prompts = questions(**asdict(asked), seed=job.seed, mode=mode, grader=grader, skip_bad=bad)

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
        start, prompts, output, mode=mode, init=init, reward=reward, max_loss=max_loss, mean_passes=mean_passes,
        config=RefineConfig(**asdict(constants), max_steps=max_steps, price=price, seed=job.seed),
        adapter=DrLLMConfig(**settings, rms_norm=rms_norm), base=base, max_new_tokens=max_new_tokens,
        chat_template=chat_template is not False, grader=grader, skip_bad=bad, batch_size=rows, **job.running,
    )  # fmt: skip
    if bad is not None:
        bad.say()
    if result is not None:
        record = load_training_record(output)
        write_json(job.json_file, record)
        say_next(output, record["supervision"])
