"""Load routers from the Hub, generate, and see which blocks the prompt needed.

    python examples/quickstart.py me/routers "What do plants need to grow?"

The first argument is an adapter on the Hub or in a folder; the base model that it names is loaded with it.
"""

import argparse

from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

import drllm_adapter

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("adapter", help="a name on the Hub or a folder")
parser.add_argument("prompt")
parser.add_argument("--max-new-tokens", type=int, default=64)
parser.add_argument("--budget", type=int, help="never more block passes than this")
args = parser.parse_args()

model = AutoPeftModelForCausalLM.from_pretrained(args.adapter).eval()
tokenizer = AutoTokenizer.from_pretrained(model.peft_config["default"].base_model_name_or_path)
if args.budget is not None:
    drllm_adapter.set_layer_budget(model, args.budget)

if tokenizer.chat_template is None:
    inputs = tokenizer(args.prompt, return_tensors="pt")
else:
    chat = [{"role": "user", "content": args.prompt}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)

output = model.generate(
    input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=args.max_new_tokens
)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

decisions = drllm_adapter.last_decisions(model)[0]  # of each block: 0 skipped, 1 executed, 2 repeated
print(f"{int(decisions.sum())} block passes for {len(decisions)} blocks: {decisions.tolist()}")
