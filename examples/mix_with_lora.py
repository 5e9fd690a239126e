"""A LoRA and routers on one base: the LoRA lies inside the blocks, the routers decide which of them run.

    python examples/mix_with_lora.py me/lora me/routers "What do plants need to grow?"

Both are adapters on the Hub or in folders, for the same base model. Either can be taken away again without the other.
"""

import argparse

from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoTokenizer

import drllm_adapter

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("lora", help="a LoRA on the Hub or in a folder")
parser.add_argument("routers", help="routers on the Hub or in a folder")
parser.add_argument("prompt")
parser.add_argument("--max-new-tokens", type=int, default=64)
args = parser.parse_args()

with_lora = AutoPeftModelForCausalLM.from_pretrained(args.lora).eval()
model = PeftModel.from_pretrained(with_lora, args.routers, adapter_name="routers").eval()
tokenizer = AutoTokenizer.from_pretrained(with_lora.peft_config["default"].base_model_name_or_path)
inputs = tokenizer(args.prompt, return_tensors="pt")


def answer(of: PeftModel) -> str:
    output = of.generate(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=args.max_new_tokens
    )
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


print("LoRA and routers: ", answer(model), drllm_adapter.last_decisions(model)[0].tolist())
with model.disable_adapter():
    print("LoRA alone:       ", answer(model))
# `model.unload()` gives the LoRA back as it was; routers cannot be merged, since they depend on the prompt.
assert model.unload() is with_lora
