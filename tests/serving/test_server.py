"""`drllm serve` over HTTP: many clients with different paths at once, paths by their ids, mistakes as HTTP 400."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from asked import NEW, Tokens, decided, is_greedy, prompts
from peft import PeftModel

from drllm_adapter import DrLLMError
from drllm_adapter.serving.server import run_server

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")

CLIENTS, SECONDS = 64, float(os.environ.get("DRLLM_SERVE_SECONDS", "20"))


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


@pytest.fixture(scope="module")
def server(adapter: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "drllm_adapter", "serve", adapter, "--host", "127.0.0.1", "--port", port,
               "--dtype", "float32", "--max-model-len", 96, "--max-num-seqs", 32,
               "--served-model-name", "routed"]  # fmt: skip
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with open(log, "w") as file:
        process = subprocess.Popen(list(map(str, command)), stdout=file, stderr=subprocess.STDOUT, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 900
        while True:
            assert process.poll() is None, log.read_text()[-5000:]
            assert time.monotonic() < deadline, log.read_text()[-5000:]
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(1)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def completion(asked: Tokens, arguments: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    body = {"model": "routed", "prompt": asked, "max_tokens": NEW, "temperature": 0, "ignore_eos": True,
            "return_token_ids": True}  # fmt: skip
    return body | ({"vllm_xargs": arguments} if arguments else {}) | changes


def test_many_clients_with_paths_of_their_own(server: str, library: PeftModel) -> None:
    """Nothing is lost or mixed up: every answer is that of the client's own prompt along its own path."""
    draw = random.Random(0)
    asked = prompts(CLIENTS, 11)
    paths = [None if place % 4 == 0 else [draw.choice((0, 1, 1, 2)) for _ in range(8)] for place in range(CLIENTS)]
    # The adapter has no router in blocks 3 and 6, and so no pages for a second pass there.
    paths = [path and [min(its, 1) if block in (3, 6) else its for block, its in enumerate(path)] for path in paths]
    right = [path or list(decided(library, its)) for its, path in zip(asked, paths, strict=True)]
    end = time.monotonic() + SECONDS

    def client(place: int) -> set[tuple[int, ...]]:
        answered: set[tuple[int, ...]] = set()
        while not answered or time.monotonic() < end:
            path = paths[place]
            body = completion(asked[place], None if path is None else {"drllm_path": path})
            response = ask(f"{server}/v1/completions", body)
            told = ask(f"{server}/drllm/paths/{response['id']}")
            assert [its["decisions"] for its in told["paths"]] == [right[place]]
            answered.add(tuple(response["choices"][0]["token_ids"]))
        return answered

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(client, range(CLIENTS)))
    for its, path, answered in zip(asked, right, answers, strict=True):
        for answer in answered:
            assert is_greedy(library, path, its, list(answer))


def test_a_wrong_request_is_told_and_the_engine_goes_on(server: str, library: PeftModel) -> None:
    (asked,) = prompts(1)
    for arguments, problem in (
        ({"drllm_path": [1] * 7}, "8 blocks"),
        ({"drllm_path": [1, 1, 1, 2, 1, 1, 1, 1]}, "repeats block 3"),
        ({"drllm_depth": 1}, "drllm_depth was given"),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(f"{server}/v1/completions", completion(asked, arguments))
        assert refused.value.code == 400
        assert problem in refused.value.read().decode()
    with pytest.raises(urllib.error.HTTPError) as unknown:
        ask(f"{server}/drllm/paths/cmpl-unknown")
    assert unknown.value.code == 404
    response = ask(f"{server}/v1/completions", completion(asked, {"drllm_path": "0-7"}))
    assert is_greedy(library, [1] * 8, asked, response["choices"][0]["token_ids"])


def test_the_openai_client(server: str) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none")
    several = client.completions.create(
        model="routed",
        prompt="a1 b2",
        max_tokens=4,
        n=2,
        temperature=1.0,
        extra_body={"vllm_xargs": {"drllm_layer_budget": 5}},
    )
    told = ask(f"{server}/drllm/paths/{several.id}")
    assert len(told["paths"]) == 2
    assert all(its["passes"] <= 5 for its in told["paths"])
    streamed = client.completions.create(
        model="routed", prompt="a1 b2", max_tokens=4, stream=True, extra_body={"vllm_xargs": {"drllm_path": "0-6"}}
    )
    names = {chunk.id for chunk in streamed}
    assert [its["drawn"] for its in ask(f"{server}/drllm/paths/{names.pop()}")["paths"]] == [
        "0-6 ·  (7 passes, 8 blocks)"
    ]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--enable-lora"], "enable_lora"),
        (["--tensor-parallel-size", "2"], "tensor_parallel_size"),
        (["--model", "other"], "leave it out, or use --base"),
    ],
)
def test_a_flag_that_leaves_the_path_is_refused_before_anything_starts(
    adapter: str, arguments: list[str], problem: str
) -> None:
    with pytest.raises(DrLLMError, match=problem):
        run_server(adapter, arguments)
