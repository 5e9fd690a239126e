"""Whose mistake it was: the Hub's and the network's end in a sentence, ours keep their traceback."""

import errno
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jobs
import pytest
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from drllm_adapter import DrLLMError
from drllm_adapter.demo import BASE
from drllm_adapter.hub import push as push_module
from drllm_adapter.hub.push import prepare_push, push
from drllm_adapter.models.hub_errors import explained

# The HTTP client under the Hub's library, whose name differs between versions.
http: Any = sys.modules[HfHubHTTPError.__mro__[1].__module__.partition(".")[0]]


def run(error: Exception) -> None:
    with explained("me/it", "uploaded"):
        raise error


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (http.ConnectError("nobody answers."), "the connection failed (ConnectError: nobody answers)"),
        (http.ReadTimeout(""), "the connection failed (ReadTimeout)"),
        (ConnectionResetError("cut"), "the connection failed (ConnectionResetError: cut)"),
        (RuntimeError("Data processing error"), "the connection failed (RuntimeError: Data processing error)"),
        (json.JSONDecodeError("Expecting value", "<html>", 0), "the connection failed (JSONDecodeError"),
        (caused(ValueError("no file"), http.ConnectError("cut")), "the connection failed (ConnectError: cut)"),
        (OSError(errno.ENOSPC, "full"), "there is no room on the disk"),
        (HFValidationError("a//b"), "that is not a name a repository can have"),
        (LocalEntryNotFoundError("gone"), "the Hub is not asked"),
    ],
)
def test_what_the_clients_raise_becomes_a_sentence(error: Exception, says: str) -> None:
    with pytest.raises(DrLLMError) as refusal:
        run(error)
    assert str(refusal.value).startswith("me/it could not be uploaded, because ")
    assert says in str(refusal.value)


@pytest.mark.parametrize("error", [KeyError("name"), TypeError("not callable"), ValueError("x"), NotImplementedError()])
def test_a_mistake_of_the_program_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        run(error)
    assert raised.value is error


@pytest.fixture
def adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter's folder, and a Hub that holds nothing."""
    jobs.make_adapter(str(BASE), str(tmp_path / "adapter"), 0)
    monkeypatch.setattr(push_module, "look_at_hub", lambda *_: (None, "repository", None))
    return tmp_path / "adapter"


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("step", ["share_base", "write_card"])
def test_local_work_before_a_push_is_not_the_networks(
    step: str, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_module, step, failing(FileNotFoundError(errno.ENOENT, "gone", "notes")))
    with pytest.raises(FileNotFoundError, match="notes"), prepare_push(adapter, "me/it"):
        pass


def test_a_full_disk_before_a_push_says_what_could_not_be_written(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "copyfile", failing(OSError(errno.ENOSPC, "full")))
    with pytest.raises(DrLLMError, match=r"adapter could not be written \(No space left"), prepare_push(adapter, "a/b"):
        pass


def test_a_file_that_went_away_before_the_upload_is_not_the_networks(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_module, "CommitOperationAdd", failing(FileNotFoundError(errno.ENOENT, "gone", "notes")))
    with prepare_push(adapter, "me/it") as plan, pytest.raises(FileNotFoundError, match="notes"):
        push(plan)


def test_a_card_on_the_hub_that_is_no_text(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_bytes(b"\xff\xfe\x00")
    monkeypatch.undo()
    monkeypatch.setattr(push_module.HfApi, "repo_info", lambda *_, **__: SimpleNamespace(sha="0" * 40))
    monkeypatch.setattr(push_module, "hf_hub_download", lambda *_, **__: tmp_path / "README.md")
    with pytest.raises(DrLLMError, match="card of me/it must be UTF-8"), prepare_push(adapter, "me/it"):
        pass


def test_a_base_that_transformers_does_not_know(client: Any, base: str, tmp_path: Path) -> None:
    name = client.name("unknown-base")
    client(jobs.make_adapter, base, str(tmp_path / "adapter"), 0)
    client(jobs.upload_folder, name, str(BASE), allow_patterns=["README.md"])
    client(jobs.upload_file, name, "config.json", b'{"model_type": "no-such-type"}')
    sentence = client.refuse("push", tmp_path / "adapter", client.name("unpushed"), "--base", name)
    assert "must be a model that transformers knows" in sentence
    assert "no-such-type" in sentence
