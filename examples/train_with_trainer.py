"""Train a LoRA with transformers' own Trainer along the paths of trained routers: weights learn to live with them.

    python examples/train_with_trainer.py me/routers questions.jsonl --output lora

The routers stay as they are and decide as at inference; the LoRA inside the blocks learns the answers along the paths
that they choose, so that skipped blocks cost less. Labels of -100 mark the prompt, which is all that routers read.
Routers themselves are trained by `drllm train` and `drllm refine`: docs/peft.md says why not by this loss.
"""

import argparse

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from drllm_adapter import DrLLMConfig
from drllm_adapter.tasks import build_prompt, load_questions

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("routers", help="a trained adapter, on the Hub or in a folder")
parser.add_argument("data", help="questions, see drllm search --help")
parser.add_argument("--output", required=True, help="folder for the LoRA")
parser.add_argument("--mode", default="cloze", help="letter, cloze or free")
parser.add_argument("--steps", type=int, default=500)
parser.add_argument("--batch-size", type=int, default=16)
args = parser.parse_args()

name = DrLLMConfig.from_pretrained(args.routers).base_model_name_or_path
tokenizer = AutoTokenizer.from_pretrained(name)
if tokenizer.pad_token is None:
    tokenizer.pad_token = tokenizer.eos_token
lora = get_peft_model(AutoModelForCausalLM.from_pretrained(name), LoraConfig(target_modules="all-linear", r=8))
model = PeftModel.from_pretrained(lora, args.routers, adapter_name="routers")  # frozen, as PEFT loads adapters

examples = []
for question in load_questions("jsonl", args.data):
    prompt = build_prompt(question, args.mode, tokenizer)
    right = prompt.continuations[prompt.answer if isinstance(prompt.answer, int) else 0]
    read = tokenizer(prompt.text, add_special_tokens=not prompt.templated)["input_ids"]
    answer = tokenizer(right, add_special_tokens=False)["input_ids"]
    examples.append({"input_ids": read + answer, "labels": [-100] * len(read) + answer})

settings = TrainingArguments(
    args.output,
    max_steps=args.steps,
    per_device_train_batch_size=args.batch_size,
    learning_rate=1e-3,
    lr_scheduler_type="cosine",
    warmup_steps=args.steps // 10,
    logging_steps=max(1, args.steps // 10),
    remove_unused_columns=False,  # they are looked for in the call of the outer of two adapters
    save_strategy="no",
    report_to="none",
)
trainer = Trainer(model, settings, train_dataset=examples, data_collator=DataCollatorForSeq2Seq(tokenizer))
trainer.train()
lora.save_pretrained(args.output)  # what mix_with_lora.py takes, with the routers
