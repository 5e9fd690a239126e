"""The base model's own continuations, and how close paths are to them, against the unrolled model."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_scoring import BASE, BLOCKS, ROUTED, TOKENIZER, paths, words
from unrolled import VOCABULARY, tiny_model, unrolled

from drllm_adapter import DrLLMError, set_layer_budget
from drllm_adapter.models.loading import route_base
from drllm_adapter.scoring.plain import Scorer
from drllm_adapter.scoring.references import add_references
from drllm_adapter.scoring.shared_prefix import SharingScorer, score_paths
from drllm_adapter.tasks import Prompt

LENGTH = 6


def ask(text: str) -> Prompt:
    return Prompt(text, False, (), "", "self", LENGTH)


@torch.no_grad()
def greedy(model: Any, text: str, count: int) -> list[int]:
    """The likeliest token each time, the whole row anew each time."""
    ids = TOKENIZER(text)["input_ids"]
    start = len(ids)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[start:]


@torch.no_grad()
def predictions(model: Any, text: str, reference: tuple[int, ...]) -> torch.Tensor:
    ids = TOKENIZER(text)["input_ids"]
    logits = model(torch.tensor([[*ids, *reference]])).logits[0].double().log_softmax(-1)
    return logits[len(ids) - 1 : -1]


@settings(max_examples=20)
@given(texts=st.lists(words, min_size=1, max_size=5))
def test_references_are_what_the_base_says_next(texts: list[str]) -> None:
    """Whatever the model's own settings of generation, the routers and the layer budget say."""
    model = copy.deepcopy(ROUTED)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "drllm_router" in name and name.endswith("up.bias"):
                parameter.copy_(torch.tensor([1.0, 0.0, 0.0]))
    set_layer_budget(model, 2)
    settings = model.get_base_model().generation_config
    settings.do_sample, settings.temperature, settings.repetition_penalty = True, 3.0, 5.0
    completed = add_references(Scorer(model, TOKENIZER), [ask(text) for text in texts])
    assert [list(prompt.reference) for prompt in completed] == [greedy(BASE, text, LENGTH) for text in texts]
    assert [prompt.continuations for prompt in completed] == [(prompt.answer,) for prompt in completed]
    assert model.get_base_model().generation_config is settings
    assert add_references(Scorer(model, TOKENIZER), completed) == completed


def test_a_reference_ends_with_the_end_token() -> None:
    model = copy.deepcopy(ROUTED)
    texts = [f"w{n} w{2 * n} w5" for n in range(1, 12)]
    full = [greedy(BASE, text, LENGTH) for text in texts]
    end = full[0][2]
    model.get_base_model().generation_config.eos_token_id = end
    completed = add_references(Scorer(model, TOKENIZER), [ask(text) for text in texts])
    expected = [tokens[: tokens.index(end) + 1] if end in tokens else tokens for tokens in full]
    assert len({len(tokens) for tokens in expected}) > 1
    assert [list(prompt.reference) for prompt in completed] == expected


@pytest.mark.parametrize("shared", [False, True])
@settings(max_examples=15)
@given(pairs=st.lists(st.tuples(words, paths), min_size=1, max_size=5))
def test_fidelity_is_that_of_the_unrolled_model(shared: bool, pairs: list[tuple[str, tuple[int, ...]]]) -> None:
    scorer = Scorer(ROUTED, TOKENIZER, batch_size=3)
    prompts = add_references(scorer, [ask(text) for text, _ in pairs])
    kind = SharingScorer(ROUTED, TOKENIZER) if shared else scorer
    scores = kind.begin(prompts).score(range(len(pairs)), [path for _, path in pairs])
    for score, prompt, (text, path) in zip(scores, prompts, pairs, strict=True):
        base = predictions(BASE, text, prompt.reference)
        along = predictions(unrolled(BASE, list(path)), text, prompt.reference)
        kl = float((base.exp() * (base - along)).sum(-1).mean())
        likely = along[range(LENGTH), list(prompt.reference)].mean().exp()
        assert score.kl == pytest.approx(kl, abs=2e-4)
        assert score.probability == pytest.approx(float(likely), abs=2e-4)
        assert score.correct == (score.agreement == 1)
        margin = along.topk(2).values.diff().abs().min()
        if margin > 1e-3:
            agreement = (along.argmax(-1) == torch.tensor(prompt.reference)).double().mean()
            assert score.agreement == pytest.approx(float(agreement), abs=1e-6)


def test_the_base_agrees_with_itself_and_routers_are_compared_with_it() -> None:
    model = copy.deepcopy(ROUTED)
    scorer = Scorer(model, TOKENIZER)
    prompts = add_references(scorer, [ask(f"w{n} w{n + 3}") for n in range(1, 9)])
    assert {(score.agreement, score.kl) for score in scorer.score(prompts)} == {(1.0, 0.0)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "drllm_router" in name and name.endswith("up.weight"):
                parameter.normal_(std=5.0)
    set_layer_budget(model, 3)
    routed = scorer.score(prompts)
    assert len({score.decisions for score in routed}) > 1
    assert min(score.agreement for score in routed if score.agreement is not None) < 1
    set_layer_budget(model, None)
    assert scorer.score(prompts, [score.decisions for score in routed]) == routed


def test_scores_do_not_depend_on_the_bundle_or_the_batch() -> None:
    along = [(0, 1, 1, 2), (1, 1, 0, 1), (1, 1, 1, 1), (2, 0, 0, 1)]
    prompts = add_references(Scorer(ROUTED, TOKENIZER), [ask(" ".join(["w7"] * n)) for n in range(1, 10)])
    found = [
        score_paths(SharingScorer(ROUTED, TOKENIZER, batch_size=size), prompts, [along] * 9, bundle=bundle)
        for size, bundle in ((64, 9), (3, 4), (1, 1))
    ]
    assert found[0] == found[1] == found[2]


def test_models_whose_paths_cannot_share_are_scored_the_plain_way() -> None:
    model = route_base(tiny_model("mistral", BLOCKS))
    prompts = add_references(Scorer(model, TOKENIZER), [ask("w1 w2 w3 w4 w5"), ask("w9 w2")])
    path = (1, 0, 1, 2)
    together = SharingScorer(model, TOKENIZER).begin(prompts).score([0, 1], [path, path])
    plain = Scorer(model, TOKENIZER).score(prompts, [path, path])
    assert [score.kl for score in together] == pytest.approx([score.kl for score in plain], abs=1e-4)


def test_numbers_that_are_not_finite_agree_with_nothing() -> None:
    broken = copy.deepcopy(BASE)
    with torch.no_grad():
        broken.model.layers[2].mlp.down_proj.weight.fill_(float("nan"))
    prompts = [Prompt("w1 w2", False, ("w3",), "w3", "self", 4, reference=(3, VOCABULARY - 1))]
    model = route_base(broken)
    for scorer in (Scorer(model, TOKENIZER), SharingScorer(model, TOKENIZER)):
        score = scorer.begin(prompts).score([0], [(1, 1, 1, 1)])[0]
        assert score.agreement == 0
        assert not score.correct
        assert score.probability != score.probability


def test_prompts_without_their_references_are_refused() -> None:
    for scorer in (Scorer(ROUTED, TOKENIZER), SharingScorer(ROUTED, TOKENIZER)):
        with pytest.raises(DrLLMError, match="add_references"):
            scorer.begin([ask("w1")]).score([0], [(1,) * BLOCKS])
    with pytest.raises(DrLLMError, match=r"64 positions.*needs 66"):
        add_references(Scorer(ROUTED, TOKENIZER), [ask(" ".join(["w1"] * 60))])
