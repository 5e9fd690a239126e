"""Routers for Llama-3.2-3B-Instruct on ARC: search layer paths, train on them, evaluate.

    python examples/llama_arc.py --output llama-arc

The adapter, with its results on its card, lies in llama-arc/adapter afterwards. With the paper's constants:
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
parser.add_argument("--model", default="meta-llama/Llama-3.2-3B-Instruct")
parser.add_argument("--train-data", default="allenai/ai2_arc:ARC-Easy,allenai/ai2_arc:ARC-Challenge")
parser.add_argument("--test-data", help="the test split of the training data by default")
parser.add_argument("--mode", default="letter", help="letter or cloze, see drllm search --help")
parser.add_argument("--limit", type=int, help="questions, of each of the two")
parser.add_argument("--simulations", type=int, default=50)
parser.add_argument("--epochs", type=int, default=25)
args = parser.parse_args()
console = Console()

# Questions that are trained on and questions that are not.
to_train = load_questions("arc", args.train_data, split="train", limit=args.limit)
to_test = load_questions("arc", args.test_data or args.train_data, split="test", limit=args.limit)

# Every path tried is kept, so that another label rule needs no other search.
config = SearchConfig(simulations=args.simulations)
found = search_paths(args.model, to_train, args.output / "paths", mode=args.mode, config=config, console=console)
console.print(found.table())

# The base is frozen and runs once a question.
train_adapter(
    args.output / "paths", args.output / "adapter", config=TrainingConfig(epochs=args.epochs), console=console
)

# Inside the adapter's folder, so that its card shows the results.
report = evaluate_adapter(
    str(args.output / "adapter"), to_test, args.output / "adapter" / "evaluation", mode=args.mode, console=console
)
console.print(report.table())
