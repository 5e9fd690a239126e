"""Feature stores and models that the training tests share."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from unrolled import VOCABULARY, tiny_model

from drllm_adapter import DrLLMConfig
from drllm_adapter.training import FeatureStore

Rule = Callable[[NDArray[np.float32]], NDArray[np.int8]]


class Numbers:
    """A tokenizer of texts such as "3 14 15"; its one special token, 1, goes in front."""

    pad_token_id = 0

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1] * add_special_tokens + [int(word) for word in text.split()]}


def word_tokenizer(*, pad_token: str | None = None, padding_side: str = "right") -> PreTrainedTokenizerFast:
    """The same as a tokenizer of transformers, with a padding token or without one."""
    vocabulary = {"<pad>": 0, "<s>": 1, **{str(number): number for number in range(2, VOCABULARY)}}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = WhitespaceSplit()
    words.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=pad_token, padding_side=padding_side)


def random_store(
    questions: int = 60, routers: int = 3, windows: int = 4, width: int = 6, *, seed: int = 0, blocks: int | None = None
) -> FeatureStore:
    """Random features and labels; blocks without a router are the first ones."""
    random = np.random.default_rng(seed)
    blocks = routers if blocks is None else blocks
    means = random.normal(size=(questions, routers, windows, width)).astype(np.float32)
    used = random.integers(1, windows + 1, questions)
    for row, count in enumerate(used):
        means[row, :, count:] = 0
    labels = random.integers(0, 3, (questions, blocks)).astype(np.int8)
    labels[:, : blocks - routers] = 1
    ids = tuple(f"q{row}" for row in range(questions))
    return FeatureStore(means, used.astype(np.int64), labels, ids, tuple(range(blocks - routers, blocks)))


def learnable_store(questions: int = 500, routers: int = 3, *, seed: int = 0) -> FeatureStore:
    """A question's first feature, plus a little of the block's own noise, says what every block shall do."""
    random = np.random.default_rng(seed)
    store = random_store(questions, routers, width=8, seed=seed)
    signal = random.normal(size=questions)
    for row, count in enumerate(store.windows):
        store.means[row, :, :count, 0] = signal[row]
    noise = random.normal(scale=0.1, size=(questions, routers))
    store.labels[:] = np.digitize(signal[:, None] + noise, (-0.5, 0.5))
    return store


def routed_model(**config: Any) -> Any:
    """A random Llama of five blocks with fresh routers."""
    return get_peft_model(tiny_model("llama"), DrLLMConfig(**config)).eval()


def random_prompts(count: int, *, longest: int = 20, seed: int = 0) -> list[str]:
    """Prompts of one to `longest` tokens."""
    random = np.random.default_rng(seed)
    return [" ".join(map(str, random.integers(2, VOCABULARY, random.integers(1, longest + 1)))) for _ in range(count)]


def random_labels(count: int, blocks: int = 5, *, seed: int = 0) -> NDArray[np.int8]:
    """One random path a question."""
    return np.random.default_rng(seed).integers(0, 3, (count, blocks)).astype(np.int8)


def as_tensors(tokens: Sequence[int]) -> torch.Tensor:
    """A batch of one."""
    return torch.tensor([list(tokens)])
