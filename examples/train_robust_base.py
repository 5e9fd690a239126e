"""A base that tolerates skipped and repeated blocks, so that routers have room: continued training along random paths.

    python examples/train_robust_base.py HuggingFaceTB/SmolLM2-135M-Instruct training.jsonl --output robust-base

Every question of a batch runs along a random path of its own, a quarter of them along the base's, and a LoRA learns to
predict prompts and right answers all the same; it is then merged, so that `--output` is an ordinary model to search.
The idea is LayerSkip's (Elhoushi et al., arXiv 2404.16710), with repeats and without its early exits. Search and test
on other questions: what the base was trained on looks better than it is.
"""

import argparse
import random

import torch
from peft import LoraConfig, get_peft_model
from rich.progress import track
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, get_cosine_schedule_with_warmup

import drllm_adapter
from drllm_adapter import DrLLMConfig
from drllm_adapter.decisions import Decisions, execute_all
from drllm_adapter.search import random_path
from drllm_adapter.tasks import build_prompts, load_questions

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", help="the base, on the Hub or in a folder")
parser.add_argument("data", help="questions, see drllm search --help")
parser.add_argument("--output", required=True, help="folder for the new base")
parser.add_argument("--mode", default="contrast", help="letter, cloze or contrast")
parser.add_argument("--edits", type=int, default=6, help="blocks skipped or repeated along a path, at most; 0 for none")
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--learning-rate", type=float, default=5e-4)
parser.add_argument("--rank", type=int, default=16)
parser.add_argument("--dtype", default="auto")
args = parser.parse_args()

torch.manual_seed(0)
generator = random.Random(0)
tokenizer = AutoTokenizer.from_pretrained(args.model)
if tokenizer.pad_token is None:
    tokenizer.pad_token = tokenizer.eos_token
base = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype)
with_lora = get_peft_model(base, LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear"))
num_blocks = base.config.num_hidden_layers
weights = [weight for weight in with_lora.parameters() if weight.requires_grad]
model = get_peft_model(with_lora, DrLLMConfig(), adapter_name="routers")  # for forced decisions; it learns nothing here
for weight in weights:
    weight.requires_grad_(True)  # a second adapter froze the first


def draw_path() -> Decisions:
    """The base's path in a quarter of all cases, else one as a search by random paths tries."""
    if args.edits and generator.random() > 0.25:
        return random_path(num_blocks, args.edits, generator)
    return execute_all(num_blocks)


def mean_loss(logits: Tensor, ids: Tensor, counted: Tensor) -> Tensor:
    """Of the next token, over the positions whose token is `counted`."""
    targets = torch.where(counted, ids, -100)[:, 1:]
    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets.flatten(), ignore_index=-100)


examples = []
for prompt in build_prompts(load_questions("jsonl", args.data), args.mode, tokenizer):
    assert isinstance(prompt.answer, int)
    read = tokenizer(prompt.text, add_special_tokens=not prompt.templated)["input_ids"]
    answer = tokenizer(prompt.continuations[prompt.answer], add_special_tokens=False)["input_ids"]
    examples.append({"input_ids": read + answer, "labels": [-100] * len(read) + answer})

batches = []
for _ in range(args.epochs):
    generator.shuffle(examples)
    examples.sort(key=lambda example: len(example["input_ids"]) // 16)  # like with like: hardly any padding
    epoch = [examples[start : start + args.batch_size] for start in range(0, len(examples), args.batch_size)]
    generator.shuffle(epoch)
    batches += epoch

collate = DataCollatorForSeq2Seq(tokenizer)
optimizer = torch.optim.AdamW(weights, lr=args.learning_rate, weight_decay=0.0)
schedule = get_cosine_schedule_with_warmup(optimizer, len(batches) // 20, len(batches))
model.train()
losses = []
for step, rows in enumerate(track(batches, "continued training"), start=1):
    batch = collate(rows)
    ids, attended = batch["input_ids"], batch["attention_mask"].bool()
    with drllm_adapter.force_decisions(model, [draw_path() for _ in rows]):
        logits = model(input_ids=ids, attention_mask=batch["attention_mask"], use_cache=False).logits
    in_answer = batch["labels"] != -100
    loss = mean_loss(logits, ids, in_answer) + mean_loss(logits, ids, attended & ~in_answer)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    losses.append(loss.item())
    if step % max(1, len(batches) // 10) == 0:
        print(f"step {step} of {len(batches)}: loss {sum(losses) / len(losses):.3f}")
        losses = []

model.unload()
merged = with_lora.merge_and_unload()
merged.save_pretrained(args.output)
tokenizer.save_pretrained(args.output)
