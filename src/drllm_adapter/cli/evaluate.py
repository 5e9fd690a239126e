"""`drllm eval`."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from ..errors import DrLLMError
from .config import Config
from .groups import Asked, Job, unfolded
from .options import (
    RUNNING,
    AsTrained,
    Base,
    Grader,
    MaxNewTokens,
    SkipBad,
    TemplateAsTrained,
    as_trained,
    check_adapter,
    console,
    left_out,
    need_extra,
    questions,
    say,
    worded_by_template,
    write_json,
)


@unfolded
def evaluate(
    adapter: Annotated[str, typer.Argument(help="The adapter: a folder, or owner/name[@branch] on the Hub.")],
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for report.json and layers.png; inside the adapter's folder they go on its card."),
    ] = None,
    base: Base = None,
    *,
    asked: Asked,
    mode: AsTrained = None,
    depth_control: Annotated[
        float | None, typer.Option(min=-1, max=1, help="The paper's p; as saved by default (-0.5 is as trained).")
    ] = None,
    layer_budget: Annotated[int | None, typer.Option(help="Most block passes that a prompt may take.")] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Also compare with every baseline at equal passes; needs --supervision.")
    ] = False,
    supervision: Annotated[
        str | None,
        typer.Option(help="Paths searched on other questions, to choose the baselines by: a folder or Hub name."),
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Also run depth control, layer budget and price over their ranges.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions a forward pass.", rich_help_panel=RUNNING)] = 16,
    max_new_tokens: MaxNewTokens = None,
    grader: Grader = None,
    skip_bad: SkipBad = False,
    chat_template: TemplateAsTrained = None,
    lm_eval: Annotated[
        str | None,
        typer.Option("--lm-eval", help="Tasks of lm-evaluation-harness, with commas, instead of --task and --data."),
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option(exists=True, help="With --lm-eval: folder of further task files.")
    ] = None,
    job: Job,
    config_file: Config = None,
) -> None:
    """Compare the base with the routed model on the same questions: accuracy, passes, decisions by block.

    With --baselines --supervision PATHS and --sweep, one table and one figure answer whether the routers beat the best
    static paths, routers that see only the task or the prompt's length, and chance.

    Example: drllm eval adapter --task arc --data test.jsonl --output adapter/evaluation
    """
    from ..files import EVALUATION, REPORT
    from ..jobs import BEGUN

    if lm_eval is not None:
        if asked.data is not None:
            raise DrLLMError("questions come from --data or from --lm-eval, but both were given; drop one of them.")
        unused = {"--baselines": baselines, "--supervision": supervision, "--sweep": sweep, "--split": asked.split}
        for option, given in unused.items():
            if given:
                raise DrLLMError(
                    f"the harness measures base and routers alone, but {option} was given beside --lm-eval; leave it "
                    f"out, or evaluate --data."
                )
        need_extra("lm_eval", "lm-eval", "an evaluation with lm-evaluation-harness")
    elif include_path is not None:
        raise DrLLMError("--include-path goes with --lm-eval, but that was not given; name the tasks with --lm-eval.")
    if baselines != (supervision is not None):
        raise DrLLMError(
            "baselines are chosen on the questions of a supervision set, so --baselines and --supervision go together, "
            "but only one was given; give both or none."
        )
    make_room = None
    if output is not None:
        make_room = job.claim(output, EVALUATION, BEGUN, REPORT)
    check_adapter(adapter, base)
    if lm_eval is not None:
        from ..workflow import evaluate_with_lm_eval

        if make_room is not None:
            make_room()
        harness = evaluate_with_lm_eval(
            adapter, [name.strip() for name in lm_eval.split(",")], output, include_path=include_path,
            limit=asked.limit, base=base, batch_size=batch_size, depth_control=depth_control,
            layer_budget=layer_budget, seed=job.seed, **job.model,
        )  # fmt: skip
        console.print(harness.table())
        write_json(job.json_file, harness.to_json())
        if output is not None:
            say(f"Saved in {output}: report.json.")
        return
    task, mode, grader = as_trained(adapter, asked.task, mode, grader)
    bad = left_out(skip_bad)
    asked = replace(asked, task=task, split=asked.split or "test")
    found = questions(**asdict(asked), seed=job.seed, mode=mode, grader=grader, skip_bad=bad)
    from ..evaluation import sweep_table, verdict
    from ..workflow import evaluate_adapter

    if make_room is not None:
        make_room()
    report = evaluate_adapter(
        adapter, found, output, mode=mode, base=base, batch_size=batch_size, depth_control=depth_control,
        layer_budget=layer_budget, supervision=supervision, sweep=sweep, max_new_tokens=max_new_tokens, grader=grader,
        skip_bad=bad, chat_template=worded_by_template(adapter) if chat_template is None else chat_template,
        **job.running,
    )  # fmt: skip
    if bad is not None:
        bad.say()
    console.print(report.table())
    if report.baselines is not None:
        console.print(report.baselines.table())
    if report.sweep is not None:
        console.print(sweep_table(report.sweep))
    say(f"Verdict: {verdict(report)}")
    write_json(job.json_file, {"verdict": verdict(report), **report.to_json()})
    if output is not None:
        figures = "layers.png, tradeoff.png" if baselines or sweep else "layers.png"
        say(f"Saved in {output}: report.json, {figures}.")
