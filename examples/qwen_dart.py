"""Routers for Qwen2.5-3B-Instruct on DART (mathematics, graded with math-verify), at several layer budgets.

    pip install "drllm-adapter[math]"
    python examples/qwen_dart.py --output qwen-dart

The adapter, with its results on its card, lies in qwen-dart/adapter afterwards. With the paper's constants:
docs/recipes.md.
"""

import argparse
from pathlib import Path

from rich.console import Console

from drllm_adapter.search import SearchConfig
from drllm_adapter.tasks import load_questions
from drllm_adapter.training import TrainingConfig
from drllm_adapter.workflow import evaluate_adapter, search_paths, train_adapter

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--output", type=Path, required=True, help="folder for the supervision set and the adapter")
parser.add_argument("--model", default="Qwen/Qwen2.5-3B-Instruct")
parser.add_argument("--task", default="dart", help="jsonl for other questions with free answers, compared as text")
parser.add_argument("--data", help="questions with their levels; the task's own dataset by default")
parser.add_argument("--questions", type=int, default=2000, help="to search and train on")
parser.add_argument("--test-questions", type=int, default=500, help="to evaluate on, those that follow")
parser.add_argument("--simulations", type=int, default=50)
parser.add_argument("--epochs", type=int, default=25)
parser.add_argument("--budgets", type=int, nargs="*", default=[30], help="block passes, beside no bound")
args = parser.parse_args()
console = Console()

to_train = load_questions(args.task, args.data, limit=args.questions)
to_test = load_questions(args.task, args.data, skip=args.questions, limit=args.test_questions)

# Free answers: each path is judged by what the model writes along it, greedily, 15 tokens as in the paper.
config = SearchConfig(simulations=args.simulations)
found = search_paths(args.model, to_train, args.output / "paths", mode="free", config=config, console=console)
console.print(found.table())
adapter = args.output / "adapter"
train_adapter(args.output / "paths", adapter, config=TrainingConfig(epochs=args.epochs), console=console)

# One evaluation with the routers as trained, and one for each bound on the passes; all of them are on the card.
for budget in [None, *args.budgets]:
    name = "evaluation" if budget is None else f"evaluation-budget-{budget}"
    report = evaluate_adapter(str(adapter), to_test, adapter / name, mode="free", layer_budget=budget, console=console)
    console.print(report.table())
