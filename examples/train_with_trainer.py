"""Train routers with transformers' own Trainer and the language-model loss: no search, no supervision set.

    python examples/train_with_trainer.py HuggingFaceTB/SmolLM2-135M-Instruct questions.jsonl --output routers

Routers decide as at inference and get their gradients straight through; `--depth-penalty` is the price of L block
passes, in the units of the loss. Labels of -100 mark the prompt, which is all that the routers read.
"""

import argparse

from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from drllm_adapter import DrLLMConfig
from drllm_adapter.tasks import build_prompt, load_questions

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", help="the frozen base, on the Hub or in a folder")
parser.add_argument("data", help="questions, see drllm search --help")
parser.add_argument("--output", required=True, help="folder for the adapter")
parser.add_argument("--mode", default="cloze", help="letter, cloze or free")
parser.add_argument("--depth-penalty", type=float, default=0.2)
parser.add_argument("--steps", type=int, default=500)
parser.add_argument("--batch-size", type=int, default=16)
args = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(args.model)
if tokenizer.pad_token is None:
    tokenizer.pad_token = tokenizer.eos_token
base = AutoModelForCausalLM.from_pretrained(args.model)
model = get_peft_model(base, DrLLMConfig(depth_penalty=args.depth_penalty))
model.print_trainable_parameters()

examples = []
for question in load_questions("jsonl", args.data):
    prompt = build_prompt(question, args.mode, tokenizer)
    right = prompt.continuations[prompt.answer if isinstance(prompt.answer, int) else 0]
    read = tokenizer(prompt.text, add_special_tokens=not prompt.templated)["input_ids"]
    answer = tokenizer(right, add_special_tokens=False)["input_ids"]
    examples.append({"input_ids": read + answer, "labels": [-100] * len(read) + answer})

trainer = Trainer(
    model,
    TrainingArguments(
        args.output,
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=args.steps // 10,
        logging_steps=max(1, args.steps // 10),
        save_strategy="no",
        report_to="none",
    ),
    train_dataset=examples,
    data_collator=DataCollatorForSeq2Seq(tokenizer),
)
trainer.train()
model.save_pretrained(args.output)
