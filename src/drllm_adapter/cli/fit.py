"""`drllm fit`."""

import random
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import DrLLMError
from .options import (
    ChatTemplate,
    Data,
    Device,
    Dtype,
    Grader,
    Json,
    Limit,
    Log,
    LogFormat,
    MaxNewTokens,
    Mode,
    Overwrite,
    Resume,
    Seed,
    SkipBad,
    Split,
    Task,
    Threads,
    claim,
    console,
    left_out,
    log_stream,
    questions,
    quoted,
    say,
    write_json,
)

if TYPE_CHECKING:
    from ..tasks import Question

_TESTED, _LEAST = 0.2, 20


def fit(
    model: Annotated[str, typer.Argument(help="The frozen base model: a folder or a name on the Hub.")],
    output: Annotated[Path, typer.Option(help="Folder for the adapter; its evaluation is in evaluation/.")],
    data: Data = None,
    test_data: Annotated[
        str | None, typer.Option(help="Prompts or questions to evaluate on; a fifth of --data by default.")
    ] = None,
    mode: Mode = "self",
    max_loss: Annotated[
        float, typer.Option(min=0, help="Most points that the routers may lose against the base, see drllm refine.")
    ] = 2.0,
    push: Annotated[str | None, typer.Option(help="Upload the adapter with its card to owner/name at the end.")] = None,
    private: Annotated[bool | None, typer.Option("--private/--public", help="With --push, of a new one.")] = None,
    task: Task = None,
    split: Split = None,
    limit: Limit = None,
    max_new_tokens: MaxNewTokens = None,
    grader: Grader = None,
    skip_bad: SkipBad = False,
    chat_template: ChatTemplate = True,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    resume: Resume = False,
    log: Log = LogFormat.bar,
    json_file: Json = None,
    dtype: Dtype = "auto",
    device: Device = None,
    threads: Threads = None,
) -> None:
    """From prompts or questions to an evaluated adapter: drllm refine, drllm eval and drllm push in one.

    Prompts need no answers (--mode self): routers learn to keep the model's own output.

    Example: drllm fit HuggingFaceTB/SmolLM2-135M-Instruct --data prompts.txt --output adapter --push me/routers
    """
    from ..jobs import BEGUN
    from ..models.download import ADAPTER, TRAINING_REPORT, check_model_name

    check_model_name(model)
    is_made = resume and (output / TRAINING_REPORT).exists() and not (output / BEGUN).exists()
    make_room = claim(output, ADAPTER, BEGUN, TRAINING_REPORT, resume=resume, overwrite=overwrite)
    bad = left_out(skip_bad)
    asked = questions(task, data, split, limit, 0, seed, mode=mode, grader=grader, skip_bad=bad)
    if test_data is not None:
        tested = questions(task, test_data, "test", None, 0, seed, mode=mode, grader=grader, skip_bad=bad)
        learnt = asked
    else:
        learnt, tested = _cut(asked, seed)
    make_room()

    from ..evaluation import verdict
    from ..training import RefineConfig
    from ..workflow import evaluate_adapter, refine_adapter

    log_to = log_stream(log)
    if not is_made:
        is_self = mode == "self"
        config = RefineConfig(max_steps=0 if is_self else 60, price=1.0 if is_self else 0.4, seed=seed)
        refine_adapter(
            model, learnt, output, mode=mode, config=config, max_new_tokens=max_new_tokens,
            chat_template=chat_template, grader=grader, skip_bad=bad, max_loss=max_loss, resume=resume, dtype=dtype,
            device=device, console=console, log=log_to,
        )  # fmt: skip
    report = evaluate_adapter(
        str(output), tested, output / "evaluation", mode=mode, max_new_tokens=max_new_tokens,
        chat_template=chat_template, grader=grader, skip_bad=bad, resume=resume, dtype=dtype, device=device,
        console=console, log=log_to,
    )  # fmt: skip
    if bad is not None:
        bad.say()
    console.print(report.table())
    say(f"Verdict: {verdict(report)}")
    write_json(json_file, {"verdict": verdict(report), **report.to_json()})
    if push is None:
        say(f"Saved in {output}. Next: drllm push {quoted(output)} OWNER/NAME")
        return
    from ..hub.push import prepare_push
    from ..hub.push import push as upload

    with prepare_push(output, push) as plan:
        _, url = upload(plan, private=private)
    say(f"Saved in {output}. Pushed: {url}")


def _cut(asked: "list[Question]", seed: int) -> "tuple[list[Question], list[Question]]":
    """What is learnt from and what is tested, drawn at random, in the order of the file."""
    if len(asked) < _LEAST:
        raise DrLLMError(
            f"a fifth of the questions is held out for a test, which takes {_LEAST} at least, but {len(asked)} were "
            f"given; give more, or others with --test-data."
        )
    tested = set(random.Random(seed).sample(range(len(asked)), round(_TESTED * len(asked))))
    return (
        [question for place, question in enumerate(asked) if place not in tested],
        [question for place, question in enumerate(asked) if place in tested],
    )
