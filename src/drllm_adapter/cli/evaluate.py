"""`drllm eval`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import DrLLMError
from .config import Config
from .options import (
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
    MaxNewTokens,
    Overwrite,
    ReportTo,
    Resume,
    Seed,
    SkipBad,
    SkipFirst,
    Task,
    TemplateAsTrained,
    Threads,
    as_trained,
    check_adapter,
    claim,
    console,
    left_out,
    log_stream,
    need_extra,
    questions,
    say,
    worded_by_template,
    write_json,
)


def evaluate(
    adapter: Annotated[str, typer.Argument(help="The adapter: a folder, or owner/name[@branch] on the Hub.")],
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for report.json and layers.png; inside the adapter's folder they go on its card."),
    ] = None,
    base: Base = None,
    task: Task = None,
    data: Data = None,
    mode: AsTrained = None,
    split: Annotated[str | None, typer.Option(help="Split of a dataset on the Hub; test by default.")] = None,
    limit: Limit = None,
    skip: SkipFirst = 0,
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
    batch_size: Annotated[int, typer.Option(min=1, help="Questions a forward pass.")] = 16,
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
    """Compare the base with the routed model on the same questions: accuracy, passes, decisions by block.

    With --baselines --supervision PATHS and --sweep, one table and one figure answer whether the routers beat the best
    static paths, routers that see only the task or the prompt's length, and chance.

    Example: drllm eval adapter --task arc --data test.jsonl --output adapter/evaluation
    """
    from ..files import EVALUATION, REPORT
    from ..jobs import BEGUN

    if lm_eval is not None:
        if data is not None:
            raise DrLLMError("questions come from --data or from --lm-eval, but both were given; drop one of them.")
        unused = {"--baselines": baselines, "--supervision": supervision, "--sweep": sweep, "--split": split}
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
        make_room = claim(output, EVALUATION, BEGUN, REPORT, resume=resume, overwrite=overwrite)
    check_adapter(adapter, base)
    if lm_eval is not None:
        from ..workflow import evaluate_with_lm_eval

        if make_room is not None:
            make_room()
        harness = evaluate_with_lm_eval(
            adapter,
            [name.strip() for name in lm_eval.split(",")],
            output,
            include_path=include_path,
            limit=limit,
            base=base,
            batch_size=batch_size,
            depth_control=depth_control,
            layer_budget=layer_budget,
            seed=seed,
            dtype=dtype,
            device=device,
        )
        console.print(harness.table())
        write_json(json_file, harness.to_json())
        if output is not None:
            say(f"Saved in {output}: report.json.")
        return
    task, mode, grader = as_trained(adapter, task, mode, grader)
    bad = left_out(skip_bad)
    asked = questions(task, data, split or "test", limit, skip, seed, mode=mode, grader=grader, skip_bad=bad)
    from ..evaluation import sweep_table, verdict
    from ..workflow import evaluate_adapter

    if make_room is not None:
        make_room()
    report = evaluate_adapter(
        adapter,
        asked,
        output,
        mode=mode,
        base=base,
        batch_size=batch_size,
        depth_control=depth_control,
        layer_budget=layer_budget,
        supervision=supervision,
        sweep=sweep,
        max_new_tokens=max_new_tokens,
        grader=grader,
        skip_bad=bad,
        chat_template=worded_by_template(adapter) if chat_template is None else chat_template,
        dtype=dtype,
        device=device,
        resume=resume,
        console=console,
        log=log_stream(log),
    )
    if bad is not None:
        bad.say()
    console.print(report.table())
    if report.baselines is not None:
        console.print(report.baselines.table())
    if report.sweep is not None:
        console.print(sweep_table(report.sweep))
    say(f"Verdict: {verdict(report)}")
    write_json(json_file, {"verdict": verdict(report), **report.to_json()})
    if output is not None:
        figures = "layers.png, tradeoff.png" if baselines or sweep else "layers.png"
        say(f"Saved in {output}: report.json, {figures}.")
