"""A Hub for the tests of this folder: the loopback by default, the real one with `-m hub` and a token."""

import multiprocessing
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jobs
import pytest
from loopback import OWNER, Loopback


@dataclass
class Client:
    """A process with its own environment and cache, in which the client libraries ask one Hub."""

    environment: dict[str, str]
    namespace: str
    names: dict[str, str] = field(default_factory=dict)
    pool: ProcessPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        self.pool = ProcessPoolExecutor(
            1,
            multiprocessing.get_context("spawn"),
            initializer=jobs.start,
            initargs=({**self.environment, "HF_HUB_OFFLINE": self.environment.get("HF_HUB_OFFLINE", "0")},),
        )

    def __call__(self, job: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """The result of a job of `jobs.py`, or its exception."""
        return self.pool.submit(job, *arguments, **options).result(timeout=300)

    def drllm(self, *arguments: object, environment: dict[str, str] | None = None) -> str:
        """What a command printed."""
        code, printed = self(jobs.drllm, *map(str, arguments), environment=environment)
        assert code == 0, printed
        return printed

    def refuse(self, *arguments: object, environment: dict[str, str] | None = None) -> str:
        """The one sentence with which a command refused."""
        code, printed = self(jobs.drllm, *map(str, arguments), environment=environment)
        lines = [line for line in printed.splitlines() if line.startswith("drllm: ")]
        assert code == 2, printed
        assert len(lines) == 1, printed
        assert lines[0].endswith("."), printed
        return lines[0]

    def name(self, name: str) -> str:
        """A repository of this session."""
        return self.names.setdefault(name, f"{self.namespace}/{name}")

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)


def environment_for(url: str, home: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_TOKEN": OWNER,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }


@pytest.fixture(scope="session")
def loopback() -> Iterator[Loopback]:
    with Loopback() as hub:
        yield hub


@pytest.fixture(scope="session", params=["loopback", pytest.param("real", marks=pytest.mark.hub)])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    home = tmp_path_factory.mktemp("home")
    if request.param == "loopback":
        made = Client(environment_for(request.getfixturevalue("loopback").url, home), "me")
    else:
        if "HF_TOKEN" not in os.environ:
            pytest.skip("the real Hub needs a token in HF_TOKEN")
        from huggingface_hub import HfApi

        user = HfApi(endpoint="https://huggingface.co").whoami(os.environ["HF_TOKEN"])["name"]
        real = {**environment_for("https://huggingface.co", home), "HF_TOKEN": os.environ["HF_TOKEN"]}
        made = Client(real, user)
        suffix = uuid.uuid4().hex[:8]
        made.names = _Suffixed(user, suffix)
    yield made
    if request.param == "real":
        made(jobs.delete_repos, list(made.names.values()))
    made.close()


class _Suffixed(dict[str, str]):
    """Names that nobody else uses, for the real Hub."""

    def __init__(self, user: str, suffix: str) -> None:
        self.user, self.suffix = user, suffix

    def setdefault(self, key: str, default: str = "") -> str:  # type: ignore[override]
        return super().setdefault(key, f"{self.user}/drllm-test-{key}-{self.suffix}")


@pytest.fixture(scope="session")
def base(client: Client) -> str:
    """The embedded base model, by its name on the Hub."""
    name = client.name("base")
    client(jobs.upload_base, name)
    return name


sys.path.insert(0, str(Path(__file__).parent))
