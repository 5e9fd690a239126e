"""Ways of generating and what a call returns beside logits, over unlike architectures."""

import copy
import random
from typing import Any

import pytest
import torch
from peft import get_peft_model
from test_architectures import DECISIONS, batch, relative
from test_caches import TOLERANCE, base_and_routed, expected_rows, greedy, tokens, truth
from tiny import NUM_BLOCKS, VOCABULARY, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    CompileConfig,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    TextStreamer,
    pipeline,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from unroll import unrolled

from drllm_adapter import DrLLMConfig, DrLLMError, force_decisions, last_decisions
from drllm_adapter.adapter.layer import routed_layers

pytestmark = pytest.mark.filterwarnings("ignore")
PATH = [0, 2, 1, 2]
# llama, gemma3_text (windows), lfm2 (convolutions), mixtral (experts), bloom (ALiBi)
UNLIKE = ("llama", "gemma3_text", "lfm2", "mixtral", "bloom")


@pytest.mark.parametrize("model_type", [*UNLIKE, "qwen3_next", "mamba"])
@torch.no_grad()
def test_beams_samples_and_sequences(model_type: str) -> None:
    """Rows of different paths, each as its unrolled model alone."""
    routed = base_and_routed(model_type)[1]
    ids, mask, _ = batch()
    beams = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 5, "do_sample": False}
    with force_decisions(routed, DECISIONS):
        found = routed.generate(ids, attention_mask=mask, **beams)[:, 9:].unflatten(0, (3, 2))
    for row, path in enumerate(DECISIONS):
        prompt = ids[row][mask[row].bool()][None]
        expected = truth(model_type, tuple(path)).generate(prompt, attention_mask=torch.ones_like(prompt), **beams)
        assert found[row].tolist() == expected[:, prompt.shape[1] :].tolist()
    drawn = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 5, "temperature": 2.0}
    prompt = ids[1:2]
    torch.manual_seed(5)
    with force_decisions(routed, PATH):
        found = routed.generate(prompt, attention_mask=torch.ones_like(prompt), **drawn)
    torch.manual_seed(5)
    expected = truth(model_type, tuple(PATH)).generate(prompt, attention_mask=torch.ones_like(prompt), **drawn)
    assert found.tolist() == expected.tolist()
    assert len({tuple(row) for row in found.tolist()}) == 3


@pytest.mark.parametrize("model_type", UNLIKE)
@torch.no_grad()
def test_assisted_generation_decides_by_the_prompt_alone(model_type: str) -> None:
    """The first call holds prompt and candidates; the tokens and the route are those of plain generation."""
    base, routed = base_and_routed(model_type)
    ids = tokens(1, 8, seed=9)
    plain = greedy(routed, ids, 8)
    paths = last_decisions(routed).tolist()
    assistant = tiny_model("llama", seed=4)
    for arguments in ({"assistant_model": assistant}, {"prompt_lookup_num_tokens": 3}):
        repeated = torch.cat([ids[:, :6], ids[:, :6]], dim=1)  # something to look up
        expected = greedy(routed, repeated, 8)
        decided = last_decisions(routed).tolist()
        assert greedy(routed, repeated, 8, **arguments) == expected
        assert last_decisions(routed).tolist() == decided
        assert greedy(routed, ids, 8, **arguments) == plain
        assert last_decisions(routed).tolist() == paths
    # As the assistant: what the target says stands.
    assert greedy(base, ids, 8, assistant_model=routed.get_base_model()) == greedy(truth(model_type, (1,) * 4), ids, 8)


@pytest.mark.parametrize("model_type", ["gemma3_text", "lfm2", "llama"])
@pytest.mark.parametrize("path", [[0, 2, 1, 2], [1, 0, 2, 0], [2, 2, 0, 0]])
@torch.no_grad()
def test_candidates_are_taken_back_from_every_pass(model_type: str, path: list[int]) -> None:
    """Rejected candidates leave windows and states as they were, in skipped blocks too."""
    routed = base_and_routed(model_type)[1]
    ids = tokens(1, 4, seed=2).repeat(1, 3)
    with force_decisions(routed, path):
        found = greedy(routed, ids, 10, prompt_lookup_num_tokens=3)
    assert found == greedy(truth(model_type, tuple(path)), ids, 10, use_cache=False)


@torch.no_grad()
def test_streamers_stopping_criteria_and_pipeline() -> None:
    routed = base_and_routed("llama")[1]
    vocabulary = {f"t{token}": token for token in range(VOCABULARY)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="t0", unk_token="t0")
    ids = tokens(1, 6)
    expected = greedy(truth("llama", tuple(PATH)), ids, 6)[0]

    class Collect(TextStreamer):
        text = ""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.text += text

    class AfterThree(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            return torch.tensor([input_ids.shape[1] >= 9])

    with force_decisions(routed, PATH):
        streamer = Collect(tokenizer, skip_prompt=True)
        greedy(routed, ids, 6, streamer=streamer)
        assert tokenizer(streamer.text)["input_ids"] == expected
        assert greedy(routed, ids, 6, stopping_criteria=[AfterThree()])[0] == expected[:3]
        write = pipeline("text-generation", routed.get_base_model(), tokenizer=tokenizer)
        prompts = [tokenizer.decode(ids[0]), tokenizer.decode(ids[0, :4])]
        made = write(prompts, max_new_tokens=6, do_sample=False, return_full_text=False, batch_size=2)
    assert tokenizer(made[0][0]["generated_text"])["input_ids"] == expected
    assert tokenizer(made[1][0]["generated_text"])["input_ids"] == greedy(truth("llama", tuple(PATH)), ids[:, :4], 6)[0]


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bloom", "gemma3_text"])
@torch.no_grad()
def test_hidden_states_are_those_between_the_blocks(model_type: str) -> None:
    """One more than blocks, whatever the route: what enters each block, and what the head reads."""
    routed = base_and_routed(model_type)[1]
    ids, _, _ = batch()
    with force_decisions(routed, DECISIONS):
        found = routed(ids, output_hidden_states=True).hidden_states
    assert len(found) == NUM_BLOCKS + 1
    for row, path in enumerate(DECISIONS):
        expected = truth(model_type, tuple(path))(ids[row : row + 1], output_hidden_states=True).hidden_states
        made = 0
        for block in range(NUM_BLOCKS):
            if made < len(expected) - 1:  # the last one is normalised
                assert relative(found[block][row], expected[made][0]) < TOLERANCE
            made += path[block]
        assert relative(found[-1][row], expected[-1][0]) < TOLERANCE
    with force_decisions(routed, [0] * NUM_BLOCKS):
        skipped = routed(ids, output_hidden_states=True).hidden_states
    assert all(torch.equal(state, skipped[0]) for state in skipped[:-1])
    with routed.disable_adapter():
        base = routed(ids, output_hidden_states=True).hidden_states
    with force_decisions(routed, [1] * NUM_BLOCKS):
        same = routed(ids, output_hidden_states=True).hidden_states
    assert all(torch.equal(a, b) for a, b in zip(base, same, strict=True))


@torch.no_grad()
def test_attentions_and_router_logits_are_those_of_each_pass() -> None:
    """As the unrolled model's where rows agree; where they differ there is no such tensor, and the call says so."""
    ids, mask, _ = batch()
    for model_type, attention, option in (
        ("llama", "eager", "output_attentions"),
        ("mixtral", "sdpa", "output_router_logits"),
    ):
        routed = base_and_routed(model_type, attention)[1]
        with force_decisions(routed, PATH):
            found = routed(ids, attention_mask=mask, labels=ids, **{option: True})
        expected = truth(model_type, tuple(PATH), attention)(ids, attention_mask=mask, labels=ids, **{option: True})
        name = option.removeprefix("output_")
        assert len(found[name]) == sum(PATH)
        assert all(relative(a, b) < TOLERANCE for a, b in zip(found[name], expected[name], strict=True))
        assert relative(found.loss, expected.loss) < TOLERANCE
        with pytest.raises(DrLLMError, match=option), force_decisions(routed, DECISIONS):
            routed(ids, attention_mask=mask, **{option: True})


@pytest.mark.parametrize("model_type", UNLIKE)
@torch.no_grad()
def test_thirty_two_rows(model_type: str) -> None:
    """Different paths, lengths and paddings: each row's logits and tokens as its own alone."""
    draw = random.Random(0)
    routed = base_and_routed(model_type)[1]
    lengths = [draw.randint(1, 12) for _ in range(32)]
    paths = [[draw.randint(0, 2) for _ in range(NUM_BLOCKS)] for _ in range(32)]
    paths = [path if any(path) else [1] * NUM_BLOCKS for path in paths]
    ids = tokens(32, 12, seed=8)
    mask = (torch.arange(12) >= 12 - torch.tensor(lengths)[:, None]).long()
    ids = ids * mask
    settings = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with force_decisions(routed, paths):
        made = routed.generate(ids, attention_mask=mask, **settings)
    for row, path in enumerate(paths):
        prompt = ids[row, 12 - lengths[row] :][None]
        with force_decisions(routed, path):
            alone = routed.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
        assert relative(torch.stack(made.logits)[:, row], torch.stack(alone.logits)[:, 0]) < TOLERANCE
        assert made.sequences[row, 12:].tolist() == alone.sequences[0, prompt.shape[1] :].tolist()
    for row in (0, 15, 31):
        expected = expected_rows(model_type, [paths[row]], ids[row : row + 1], mask[row : row + 1])
        assert made.sequences[row, 12:].tolist() == expected[0][:4]


VISION = {
    "gemma3": {
        "vision_config": {
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": NUM_BLOCKS, "num_attention_heads": 2,
            "image_size": 8, "patch_size": 4,
        },
        "mm_tokens_per_image": 4, "image_token_index": 60, "boi_token_index": 58, "eoi_token_index": 59,
    },
    "qwen2_5_vl": {
        "vision_config": {
            "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 16, "depth": NUM_BLOCKS, "num_heads": 2,
            "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 1, "window_size": 8,
            "fullatt_block_indexes": [0],
        },
        "image_token_id": 60, "video_token_id": 59, "vision_start_token_id": 58, "vision_end_token_id": 57,
    },
    "qwen2_vl": {
        "vision_config": {
            "embed_dim": 16, "hidden_size": 32, "depth": NUM_BLOCKS, "num_heads": 2, "mlp_ratio": 1, "patch_size": 4,
            "spatial_merge_size": 2, "temporal_patch_size": 1,
        },
        "image_token_id": 60, "video_token_id": 59, "vision_start_token_id": 58, "vision_end_token_id": 57,
    },
}  # fmt: skip
"""Vision towers with as many blocks as the text decoder, which must not be taken for it."""


def multimodal(model_type: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """A tiny model that reads images, and three rows of an image and some text."""
    text: dict[str, Any] = {
        "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": NUM_BLOCKS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None, "sliding_window": 6,
    }  # fmt: skip
    if model_type != "gemma3":
        section = [1, 1, 2]
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section}
        text.pop("sliding_window")
    torch.manual_seed(0)
    config = CONFIG_MAPPING[model_type](text_config=text, **VISION[model_type])
    model = AutoModelForImageTextToText.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    ids = torch.randint(2, 50, (3, 10), generator=torch.Generator().manual_seed(2))
    ids[:, 1], ids[:, 2:6], ids[:, 6] = 58, 60, 59
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model_type == "gemma3":
        inputs["pixel_values"] = torch.randn(3, 3, 8, 8)
        inputs["token_type_ids"] = (ids == 60).long()
    else:
        ids[:, 6] = 57
        inputs["pixel_values"] = torch.randn(3 * 16, 3 * 4 * 4)
        inputs["image_grid_thw"] = torch.tensor([[1, 4, 4]] * 3)
        inputs["mm_token_type_ids"] = (ids == 60).long()
    return model, inputs


@pytest.mark.parametrize("model_type", VISION)
@torch.no_grad()
def test_the_text_decoder_of_a_multimodal_model(model_type: str) -> None:
    base, inputs = multimodal(model_type)
    routed = get_peft_model(copy.deepcopy(base), DrLLMConfig()).eval()
    assert len(routed_layers(routed)) == NUM_BLOCKS
    generation = {"max_new_tokens": 4, "do_sample": False}
    fresh = routed(**inputs).logits
    assert torch.equal(fresh, base(**inputs).logits)
    with force_decisions(routed, DECISIONS):
        logits = routed(**inputs).logits
        made = routed.generate(**inputs, **generation)
    assert last_decisions(routed).tolist() == DECISIONS
    for row, path in enumerate(DECISIONS):
        model = unrolled(base, path)
        one = {
            name: value.chunk(3)[row] if name == "pixel_values" else value[row : row + 1]
            for name, value in inputs.items()
        }
        assert relative(logits[row], model(**one).logits[0]) < TOLERANCE
        assert made[row].tolist() == model.generate(**one, **generation)[0].tolist()


@torch.no_grad()
def test_compiled_along_a_given_path() -> None:
    """No graph break inside a block, nor anywhere else; generation with compilation on gives the same tokens."""
    torch._dynamo.reset()
    routed = get_peft_model(tiny_model("llama"), DrLLMConfig()).eval()
    ids = tokens(2, 9)
    routed(ids, output_hidden_states=True)  # transformers leaves the hooks by which it records on the blocks
    for path in (PATH, [PATH, [1, 0, 2, 1]]):
        with force_decisions(routed, path):
            expected = routed(ids, use_cache=False).logits
            compiled = torch.compile(routed.get_base_model(), backend="aot_eager", fullgraph=True)
            assert relative(compiled(ids, use_cache=False).logits, expected) < TOLERANCE
    torch._dynamo.reset()
    with force_decisions(routed, PATH):
        eager = greedy(routed, ids, 5, cache_implementation="static")
        settings = CompileConfig(backend="aot_eager", fullgraph=False, mode=None)
        settings._compile_all_devices = True
        assert greedy(routed, ids, 5, cache_implementation="static", compile_config=settings) == eager
    torch._dynamo.reset()
