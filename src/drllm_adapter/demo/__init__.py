"""A small trained model and its task, in which the prompt says how much depth the answer needs."""

from pathlib import Path

BASE = Path(__file__).parent / "base"
"""The model's folder: Llama class, loads with `AutoModelForCausalLM.from_pretrained`."""
