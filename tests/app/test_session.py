"""Answers that several people ask of one model at once: as if each were alone, and as `generate` gives them."""

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from drllm_adapter import DrLLMConfig, DrLLMError, force_decisions, set_depth_control, set_layer_budget
from drllm_adapter.app.session import Answer, Ask, Session
from drllm_adapter.demo import BASE
from drllm_adapter.demo.khop import generate
from drllm_adapter.workflow.generate import generate_text

PROMPTS = [item["question"] for item in generate(7, seed=5)]


def fresh_model(seed: int = 0, **config: Any) -> Any:
    """Routers that decide differently for different prompts, on the embedded base."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(BASE, **config), DrLLMConfig()).eval()
    model.generation_config.eos_token_id = [1]  # the embedded model ends at once, behind its one letter
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "drllm_router" in name:
            torch.nn.init.normal_(parameter, std=1.0 if "up" in name else 0.3)
    return model


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(fresh_model(), AutoTokenizer.from_pretrained(BASE))


def last(session: Session, ask: Ask, **options: Any) -> Answer:
    return list(session.answer(ask, **options))[-1]


def facts(answer: Answer) -> tuple[Any, ...]:
    """All but the seconds."""
    return answer.text, answer.path, answer.tokens, answer.cache_bytes, answer.ended


def test_answers_are_those_of_generate(session: Session) -> None:
    paths = set()
    for prompt in PROMPTS:
        for routed in (True, False):
            expected = generate_text(session.model, session.tokenizer, prompt, max_new_tokens=12, routed=routed)
            found = last(session, Ask(prompt, max_new_tokens=12), routed=routed)
            assert (found.text, found.tokens) == (expected.text, expected.tokens)
            if routed:
                assert found.path is not None
                assert found.path.decisions == found.path.chosen == expected.decisions
                paths.add(found.path.decisions)
    assert len(paths) > 1


def test_an_answer_grows_and_can_be_left(session: Session) -> None:
    ask = Ask(PROMPTS[0], max_new_tokens=12)
    growing = session.answer(ask, routed=False)
    states = [next(growing) for _ in range(3)]
    assert [state.tokens for state in states] == [1, 2, 3]
    assert not states[-1].ended
    growing.close()
    assert facts(last(session, ask)) == facts(last(session, ask))  # nothing is held


def test_controls_are_those_of_the_adapter(session: Session) -> None:
    fresh = fresh_model()
    prompt = PROMPTS[1]
    set_depth_control(fresh, 0.2)
    set_layer_budget(fresh, 5)
    expected = generate_text(fresh, session.tokenizer, prompt, max_new_tokens=3)
    before = session.path(Ask(prompt))
    assert session.path(Ask(prompt, depth_control=0.2, layer_budget=5)).decisions == expected.decisions
    assert sum(expected.decisions) <= 5
    assert session.path(Ask(prompt)) == before  # the adapter's own settings are back
    assert session.path(Ask(prompt, depth_control=0.5)).probabilities == (pytest.approx((0, 1, 0)),) * 8
    assert set(session.path(Ask(prompt, depth_control=-1.0)).decisions) == {0}


def test_a_price_makes_every_pass_less_likely(session: Session) -> None:
    prompt = PROMPTS[1]
    before = session.path(Ask(prompt))
    logits = torch.tensor([before.probabilities[0]]).log() - 0.7 * torch.arange(3)  # the first block reads the same
    assert session.path(Ask(prompt, price=0.7)).probabilities[0] == pytest.approx(logits.softmax(-1)[0].tolist())
    assert set(session.path(Ask(prompt, price=1e4)).decisions) == {0}
    assert set(session.path(Ask(prompt, price=-1e4)).decisions) == {2}
    assert session.path(Ask(prompt)) == before


def test_probabilities_are_those_that_decided(session: Session) -> None:
    for prompt in PROMPTS:
        path = session.path(Ask(prompt))
        assert path.decisions == tuple(max(range(3), key=shares.__getitem__) for shares in path.probabilities if shares)
        assert all(sum(shares) == pytest.approx(1) for shares in path.probabilities if shares)


def test_a_forced_block_changes_the_path_there_alone(session: Session) -> None:
    prompt = PROMPTS[2]
    chosen = session.path(Ask(prompt)).chosen
    forced = {2: (chosen[2] + 1) % 3, 5: (chosen[5] + 2) % 3}
    found = last(session, Ask(prompt, max_new_tokens=6, forced=forced))
    assert found.path is not None
    assert found.path.chosen == chosen
    assert found.path.decisions == tuple(forced.get(block, decision) for block, decision in enumerate(chosen))
    with force_decisions(session.model, found.path.decisions):
        assert generate_text(session.model, session.tokenizer, prompt, max_new_tokens=6).text == found.text
    with pytest.raises(DrLLMError, match="forced blocks must be 0 to 7, but 8 was given"):
        session.path(Ask(prompt, forced={8: 0}))


def test_bytes_are_of_the_passes(session: Session) -> None:
    """Keys and values of 4 heads of 24 float32 numbers, for every token but the last and every pass."""
    for forced, passes in (({}, None), (dict.fromkeys(range(8), 0), 0), (dict.fromkeys(range(8), 2), 16)):
        answer = last(session, Ask(PROMPTS[3], max_new_tokens=4, forced=forced))
        assert answer.path is not None
        taken = sum(answer.path.decisions)
        assert passes in (None, taken)
        assert answer.cache_bytes == taken * (answer.prompt_tokens + answer.tokens - 1) * 2 * 4 * 24 * 4
    base = last(session, Ask(PROMPTS[3], max_new_tokens=4), routed=False)
    assert base.cache_bytes == 8 * (base.prompt_tokens + base.tokens - 1) * 2 * 4 * 24 * 4


def test_two_at_once_do_not_disturb_each_other(session: Session) -> None:
    asks = [Ask(prompt, max_new_tokens=20, depth_control=p, forced=forced)
            for prompt, p, forced in zip(PROMPTS, (-0.5, 0.3, -0.8, -0.5, -0.6, 0.7, -0.5),
                                         ({}, {1: 2}, {}, {4: 0, 5: 0}, {}, {}, {7: 2}), strict=True)]  # fmt: skip
    alone = [[facts(answer) for pair in session.side_by_side(ask) for answer in pair] for ask in asks]
    together: dict[int, list[Any]] = defaultdict(list)
    barrier = Barrier(2)

    def visitor(number: int) -> None:
        barrier.wait()
        for place, ask in list(enumerate(asks))[:: 1 if number else -1]:
            found = [facts(answer) for pair in session.side_by_side(ask) for answer in pair]
            together[place].append(found)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(visitor, range(2)))
    for place, expected in enumerate(alone):
        assert together[place] == [expected, expected]


def test_a_prompt_that_is_too_long_is_a_sentence(session: Session) -> None:
    with pytest.raises(DrLLMError, match=r"fit the model's 128 positions, but it has \d+; shorten it"):
        next(session.answer(Ask(" ".join(PROMPTS * 2))))
    with pytest.raises(DrLLMError, match="at least one token"):
        session.path(Ask(""))
