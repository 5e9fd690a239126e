"""What a request and an engine may say about paths, without vLLM: read, refused in a sentence, told apart in caches."""

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drllm_adapter import DrLLMError
from drllm_adapter.decisions import draw
from drllm_adapter.serving import engine_arguments
from drllm_adapter.serving.admission import name_of, settings_of
from drllm_adapter.serving.requests import read_request, refuse_beams, salt_of
from drllm_adapter.serving.routes import REMEMBERED, Routes
from drllm_adapter.serving.settings import REFUSED, Settings, check_version, refuse

FORCED = Settings(num_blocks=8, repeatable=tuple(range(8)))
ROUTED = Settings(
    num_blocks=8, adapter="/routers", routed=(1, 2, 5), repeatable=(1, 2, 5), depth_control=0.25, layer_budget=7
)


@given(st.lists(st.integers(0, 2), min_size=8, max_size=8))
def test_a_path_is_a_list_or_a_text(decisions: list[int]) -> None:
    assert read_request({"drllm_path": decisions}, FORCED).path == tuple(decisions)
    assert read_request({"drllm_path": draw(decisions).rpartition("  (")[0]}, FORCED).path == tuple(decisions)


def test_a_request_without_a_path_is_steered_as_the_adapter_or_as_it_says() -> None:
    for arguments in (None, {}, {"other": 1}):
        asked = read_request(arguments, ROUTED)
        assert (asked.path, asked.depth_control, asked.layer_budget) == (None, 0.25, 7)
    asked = read_request({"drllm_depth_control": 0.5, "drllm_layer_budget": 6}, ROUTED)
    assert (asked.depth_control, asked.layer_budget) == (0.5, 6)


WRONG: dict[str, tuple[dict[str, Any], Settings, str]] = {
    "too short": ({"drllm_path": [1] * 7}, FORCED, "8 blocks"),
    "no decision": ({"drllm_path": [1] * 7 + [3]}, FORCED, "0 .skip., 1 .execute. or 2"),
    "a truth": ({"drllm_path": [1] * 7 + [True]}, FORCED, "True was given"),
    "a number": ({"drllm_path": 5}, FORCED, "list of 8 decisions"),
    "another text": ({"drllm_path": "all"}, FORCED, "'all'"),
    "another name": ({"drllm_paths": [1] * 8}, FORCED, "drllm_paths was given"),
    "no pages": ({"drllm_path": [2] + [1] * 7}, ROUTED, "repeats block 0"),
    "over the budget": ({"drllm_path": [1] * 8}, ROUTED, "allows 7 block passes, but drllm_path makes 8"),
    "no routers": ({"drllm_depth_control": 0.0}, FORCED, "there are none here"),
    "both": ({"drllm_path": [1] * 7 + [0], "drllm_layer_budget": 8}, ROUTED, "brings its path"),
    "control": ({"drllm_depth_control": 2}, ROUTED, "depth_control must be"),
    "budget": ({"drllm_layer_budget": 4}, ROUTED, "at least 5"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_is_refused_in_a_sentence(case: str) -> None:
    arguments, settings, problem = WRONG[case]
    with pytest.raises(DrLLMError, match=problem):
        read_request(arguments, settings)


@pytest.mark.parametrize("settings", [FORCED, ROUTED, Settings(num_blocks=70, repeatable=(0, 69))])
@pytest.mark.parametrize("v2", [False, True])
def test_the_name_of_the_admission_carries_what_it_checks(settings: Settings, v2: bool) -> None:
    module, _, name = name_of(settings, v2=v2).partition(":")
    assert module == "drllm_adapter.serving.admission"
    found = settings_of(name)
    assert found is not None
    for field in ("num_blocks", "routed", "repeatable", "layer_budget", "decides"):
        assert getattr(found, field) == getattr(settings, field)
    assert settings_of("Something") is None


def test_cached_prefixes_are_shared_along_one_path_alone() -> None:
    path, other = (read_request({"drllm_path": its}, FORCED) for its in ([1] * 8, [1] * 7 + [0]))
    assert salt_of(path, "a") == salt_of(path, "b") != salt_of(other, "a")
    routed = read_request({}, ROUTED)
    assert salt_of(routed, "a") != salt_of(routed, "b")


def test_steps_of_a_beam_search_are_refused() -> None:
    """As vLLM 0.32 makes them (entrypoints/generate/beam_search); a question for one token is none."""
    step = {"max_tokens": 1, "logprobs": 8, "detokenize": False}
    with pytest.raises(DrLLMError, match="beam search"):
        refuse_beams(SimpleNamespace(**step))
    for changed in ({"max_tokens": 2}, {"logprobs": None}, {"detokenize": True}):
        refuse_beams(SimpleNamespace(**{**step, **changed}))


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_leave_the_path_is_refused_by_name(name: str) -> None:
    right, reason = REFUSED[name]
    refuse({name: right}, ROUTED)
    wrong: Any = not right if isinstance(right, bool) else 2 if isinstance(right, int) else "other"
    with pytest.raises(DrLLMError, match=f"vLLM's {name} must be"):
        refuse({name: wrong}, FORCED)
    assert reason


def test_a_prompt_may_be_cut_where_no_router_reads_it() -> None:
    refuse({"enable_chunked_prefill": True}, FORCED)
    with pytest.raises(DrLLMError, match="routers read a prompt as a whole"):
        refuse({"enable_chunked_prefill": True}, ROUTED)


def test_one_minor_version_of_vllm() -> None:
    for right in ("0.32.0", "0.32.5", "0.32"):
        check_version(right)
    for wrong in ("0.33.0", "0.31.9", "0.3.2", "0.320.0"):
        with pytest.raises(DrLLMError, match=f"{wrong} is installed"):
            check_version(wrong)


def test_settings_come_through_json() -> None:
    assert Settings.from_json({**ROUTED.to_json(), "routed": [1, 2, 5]}) == ROUTED
    with pytest.raises(DrLLMError, match="engine_arguments"):
        Settings.from_json(None)


def test_paths_are_found_by_the_names_that_users_know() -> None:
    """vLLM calls the two sequences of the response `cmpl-a` `0_cmpl-a-0-5f` and `1_cmpl-a-0-5f`."""
    routes = Routes(FORCED)

    def begin(name: str, *decisions: int) -> None:
        params = SimpleNamespace(extra_args={"drllm_path": [*decisions, *[1] * (8 - len(decisions))]})
        routes.begin(name, params, 5)

    for name, first in (("7", 0), ("1_cmpl-a-0-5f", 2), ("0_cmpl-a-0-5f", 0), ("cmpl-ab-0-1", 1), ("77-12", 2)):
        begin(name, first)
    found = routes.taken(["7", "cmpl-a", "77", "cmpl-c"])
    assert {name: [its[0] for its in paths] for name, paths in found.items()} == {"7": [0], "cmpl-a": [0, 2], "77": [2]}
    assert routes.known("7") is not None
    # What routers have not decided yet is not told.
    undecided = Routes(ROUTED)
    route = undecided.begin("a", None, 5)
    assert undecided.taken(["a"]) == {}
    route.decisions[:] = 1
    assert undecided.taken(["a"]) == {"a": [[1] * 8]}
    for number in range(REMEMBERED):
        begin(f"later{number}")
    assert routes.known("7") is None


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_extra_is_named() -> None:
    with pytest.raises(DrLLMError, match=r"pip install 'drllm-adapter\[vllm\]'"):
        engine_arguments("me/routers")
