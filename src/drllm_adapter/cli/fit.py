"""`drllm fit`."""

import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DrLLMError
from .groups import Asked, Job, unfolded
from .options import (
    ChatTemplate,
    Grader,
    MaxNewTokens,
    Mode,
    SkipBad,
    console,
    left_out,
    questions,
    quoted,
    say,
    write_json,
)

if TYPE_CHECKING:
    from ..tasks import Question

_TESTED, _LEAST = 0.2, 20


@unfolded
def fit(
    model: Annotated[str, typer.Argument(help="The frozen base model: a folder or a name on the Hub.")],
    output: Annotated[Path, typer.Option(help="Folder for the adapter; its evaluation is in evaluation/.")],
    *,
    asked: Asked,
    test_data: Annotated[
        str | None, typer.Option(help="Prompts or questions to evaluate on; a fifth of --data by default.")
    ] = None,
    mode: Mode = "self",
    max_loss: Annotated[
        float, typer.Option(min=0, help="Most points that the routers may lose against the base, see drllm refine.")
    ] = 2.0,
    push: Annotated[str | None, typer.Option(help="Upload the adapter with its card to owner/name at the end.")] = None,
    private: Annotated[bool | None, typer.Option("--private/--public", help="With --push, of a new one.")] = None,
    max_new_tokens: MaxNewTokens = None,
    grader: Grader = None,
    skip_bad: SkipBad = False,
    chat_template: ChatTemplate = True,
    job: Job,
) -> None:
    """From prompts or questions to an evaluated adapter: drllm refine, drllm eval and drllm push in one.

    Prompts need no answers (--mode self): routers learn to keep the model's own output.

    Example: drllm fit HuggingFaceTB/SmolLM2-135M-Instruct --data prompts.txt --output adapter --push me/routers
    """
    from ..jobs import BEGUN
    from ..models.download import ADAPTER, TRAINING_REPORT, HubName, check_model_name

    check_model_name(model)
    if push is not None:
        HubName.parse(push)
    is_made = job.resume and (output / TRAINING_REPORT).exists() and not (output / BEGUN).exists()
    make_room = job.claim(output, ADAPTER, BEGUN, TRAINING_REPORT)
    bad = left_out(skip_bad)
    learnt = questions(**asdict(asked), seed=job.seed, mode=mode, grader=grader, skip_bad=bad)
    if test_data is None:
        learnt, tested = _cut(learnt, job.seed)
    else:
        others = replace(asked, data=test_data, split="test", limit=None, skip=0)
        tested = questions(**asdict(others), seed=job.seed, mode=mode, grader=grader, skip_bad=bad)
    make_room()

    from ..evaluation import verdict
    from ..training import RefineConfig
    from ..workflow import evaluate_adapter, refine_adapter

    how: dict[str, Any] = {
        "mode": mode, "max_new_tokens": max_new_tokens, "chat_template": chat_template, "grader": grader,
        "skip_bad": bad, **job.running,
    }  # fmt: skip
    if not is_made:
        is_self = mode == "self"
        config = RefineConfig(max_steps=0 if is_self else 60, price=1.0 if is_self else 0.4, seed=job.seed)
        refine_adapter(model, learnt, output, config=config, max_loss=max_loss, **how)
    report = evaluate_adapter(str(output), tested, output / "evaluation", **how)
    if bad is not None:
        bad.say()
    console.print(report.table())
    say(f"Verdict: {verdict(report)}")
    write_json(job.json_file, {"verdict": verdict(report), **report.to_json()})
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
