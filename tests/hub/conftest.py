"""A Hub for the tests of this folder: the loopback by default, the real one with `-m hub` and a token."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import jobs
import pytest
from client import Client
from loopback import OWNER, Loopback


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
