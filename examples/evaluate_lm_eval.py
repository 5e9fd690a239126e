"""Base against routed with lm-evaluation-harness, whose requests are routed on their context alone.

    pip install "drllm-adapter[lm-eval]"
    python examples/evaluate_lm_eval.py me/routers --tasks arc_easy,arc_challenge --output results.json

`drllm eval me/routers --lm-eval arc_easy,arc_challenge` does the same and counts passes; this shows that the harness'
own call works, with every task and option that it has.
"""

import argparse
import json
from pathlib import Path

from drllm_adapter import DrLLMConfig

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("adapter", help="a name on the Hub or a folder")
parser.add_argument("--tasks", default="arc_easy", help="of the harness, with commas")
parser.add_argument("--include-path", help="a folder with more task files")
parser.add_argument("--limit", type=int, help="requests of each task")
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--device", default="cpu")
parser.add_argument("--output", type=Path, help="JSON file for the results")
args = parser.parse_args()
try:
    import lm_eval
    from lm_eval.tasks import TaskManager
except ImportError:
    parser.error("the harness is not installed; run pip install 'drllm-adapter[lm-eval]'")

base = DrLLMConfig.from_pretrained(args.adapter).base_model_name_or_path
manager = TaskManager(include_path=args.include_path)
results = {}
for name, model_args in (
    ("base", {"pretrained": base}),
    ("routed", {"pretrained": base, "peft": args.adapter}),
):
    run = lm_eval.simple_evaluate(
        model="hf",
        model_args=model_args,
        tasks=args.tasks.split(","),
        task_manager=manager,
        batch_size=args.batch_size,
        device=args.device,
        limit=args.limit,
    )
    results[name] = run["results"]

for task in results["base"]:
    for metric, value in results["base"][task].items():
        if isinstance(value, float):
            print(f"{task:20} {metric:24} base {value:.4f}  routed {results['routed'][task][metric]:.4f}")
if args.output is not None:
    args.output.write_text(json.dumps(results, indent=2, default=str))
