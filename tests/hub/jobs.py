"""What the tests run in a process of their own, in which the client libraries found the loopback's address."""

import json
import os
import shutil
from pathlib import Path
from typing import Any


def start(environment: dict[str, str]) -> None:
    """Run first in such a process, before any library is imported."""
    os.environ.update(environment)


def _prepare() -> Any:
    import torch

    import drllm_adapter

    torch.set_num_threads(1)
    return torch, drllm_adapter


def revision_of_base(repo: str) -> tuple[str | None, str | None, str]:
    """What a loaded base knows of its commit, by its name alone and with a revision, and what it is on the Hub."""
    from huggingface_hub import HfApi

    from drllm_adapter.adapter.base_identity import revision
    from drllm_adapter.models.loading import load_base

    commit = str(HfApi().model_info(repo).sha)
    return revision(load_base(repo)[0]), revision(load_base(f"{repo}@{commit}")[0]), commit


def upload_base(repo: str) -> None:
    """The embedded base model, under a name on the Hub."""
    from huggingface_hub import HfApi

    from drllm_adapter.demo import BASE

    api = HfApi()
    api.create_repo(repo, exist_ok=True)
    api.upload_folder(repo_id=repo, folder_path=BASE)


def _routed(base: str, seed: int, adapter_name: str = "default") -> Any:
    """A routed model whose routers choose different paths for different prompts."""
    torch, drllm = _prepare()
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), drllm.DrLLMConfig(), adapter_name).eval()
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "drllm_router" in name:
            torch.nn.init.normal_(parameter, std=1.0 if "up" in name else 0.3)
    return model


def _answer(model: Any) -> tuple[list[float], list[list[int]]]:
    """Logits and decisions for some prompts: what tells one adapter from another."""
    torch, drllm = _prepare()
    ids = torch.randint(1, model.config.vocab_size, (6, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model.eval()(ids).logits
    return logits[:, -1].flatten().tolist(), drllm.last_decisions(model).tolist()


def make_adapter(base: str, folder: str, seed: int) -> tuple[list[float], list[list[int]]]:
    """An adapter saved in a folder; gives what it answers."""
    model = _routed(base, seed)
    model.save_pretrained(folder)
    return _answer(model)


def push_with_peft(
    base: str, repo: str, seed: int, adapter_name: str = "default", **options: Any
) -> tuple[list[float], list[list[int]]]:
    """PEFT's own `push_to_hub`."""
    model = _routed(base, seed, adapter_name)
    model.push_to_hub(repo, **options)
    return _answer(model)


def drllm(*arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a command; gives its exit code and all that it printed."""
    import contextlib
    import io
    import sys

    from drllm_adapter.cli import main
    from drllm_adapter.cli.options import console

    before = dict(os.environ)
    os.environ.update(environment or {})
    printed = io.StringIO()
    sys.argv, console.file = ["drllm", *arguments], printed
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        os.environ.clear()
        os.environ.update(before)
    return code, printed.getvalue()


def upload_file(repo: str, path: str, content: bytes, **options: Any) -> str:
    from huggingface_hub import HfApi

    return HfApi().upload_file(repo_id=repo, path_in_repo=path, path_or_fileobj=content, **options).oid


def upload_folder(repo: str, folder: str, **options: Any) -> None:
    from huggingface_hub import HfApi

    HfApi().create_repo(repo, exist_ok=True, repo_type=options.get("repo_type"))
    HfApi().upload_folder(repo_id=repo, folder_path=folder, **options)


def files_of(repo: str, **options: Any) -> list[str]:
    from huggingface_hub import HfApi

    return sorted(HfApi().list_repo_files(repo, **options))


def load_of_space(repo: str, folder: str) -> tuple[list[float], list[list[int]]]:
    """What the adapter that a Space carries answers, loaded as its app.py does."""
    from huggingface_hub import snapshot_download

    _prepare()
    from drllm_adapter.models.loading import load_routed

    snapshot_download(repo, repo_type="space", local_dir=folder)
    return _answer(load_routed(str(Path(folder) / "adapter"))[0])


def titles_of(repo: str, **options: Any) -> list[str]:
    from huggingface_hub import HfApi

    return [commit.title for commit in HfApi().list_repo_commits(repo, **options)]


def read(repo: str, path: str, **options: Any) -> str:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo, path, **options)).read_text(encoding="utf-8")


# Every way of loading an adapter by its name


def load(how: str, repo: str, base: str, **options: Any) -> tuple[list[float], list[list[int]]]:
    """What the adapter answers when it was loaded in one of the usual ways."""
    _prepare()
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM, pipeline

    if how == "PeftModel":
        return _answer(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), repo, **options))
    if how == "AutoPeftModel":
        return _answer(AutoPeftModelForCausalLM.from_pretrained(repo, **options))
    if how == "AutoModel":
        return _answer(AutoModelForCausalLM.from_pretrained(repo, **_for_adapter(options)))
    if how == "load_adapter":
        model = AutoModelForCausalLM.from_pretrained(base)
        # Its own `local_files_only` and `revision` end in a TypeError in transformers 5.23.
        model.load_adapter(repo, adapter_kwargs=options)
        return _answer(model)
    if how == "load_adapter of PEFT":
        from peft import get_peft_model

        from drllm_adapter import DrLLMConfig

        peft_model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), DrLLMConfig(router_width=8))
        peft_model.load_adapter(repo, "second", **options)
        peft_model.set_adapter("second")
        return _answer(peft_model)
    if how == "pipeline":
        generate = pipeline("text-generation", model=repo, model_kwargs=_for_adapter(options))
        assert generate("a>b", max_new_tokens=1)[0]["generated_text"]
        return _answer(generate.model)
    if how == "load_routed":
        from drllm_adapter.models.loading import load_routed

        return _answer(load_routed(repo, dtype="float32")[0])
    raise ValueError(how)


def _for_adapter(options: dict[str, Any]) -> dict[str, Any]:
    """transformers gives these to the base as well, unless they stand in `adapter_kwargs`."""
    own = {name: value for name, value in options.items() if name in ("revision", "subfolder")}
    return {**{name: value for name, value in options.items() if name not in own}, "adapter_kwargs": own}


def logits_of(name: str) -> list[float]:
    """What an ordinary checkpoint, in a folder or on the Hub, makes of some prompts."""
    torch, _ = _prepare()
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(name).eval()
    with torch.no_grad():
        logits = model(torch.arange(3, 20)[None]).logits
    return logits[0, -1].tolist()


def load_rows(repo: str, **options: Any) -> Any:
    import datasets

    return datasets.load_dataset(repo, **options)


def forget_cache() -> None:
    from huggingface_hub import constants

    shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)


def delete_repos(names: list[str]) -> None:
    from huggingface_hub import HfApi

    for name in names:
        for kind in ("model", "dataset"):
            HfApi().delete_repo(name, repo_type=kind, missing_ok=True)


# Supervision sets in the hands of `datasets`


def describe_rows(repo: str) -> tuple[list[str], int, dict[str, Any]]:
    import datasets

    loaded = datasets.load_dataset(repo)
    features = loaded["train"].features
    inner = features["paths"].feature["decisions"].feature.dtype
    return list(loaded), len(loaded["train"]), {"paths": {"decisions": inner}}


def mix(first: str, second: str, file: str, repo: str) -> int:
    import datasets

    sets = [datasets.load_dataset(name, split="train") for name in (first, second)]
    mixed = datasets.concatenate_datasets(sets).shuffle(seed=0).filter(lambda row: row["level"] != 1)
    mixed = mixed.add_column("mine", [1] * len(mixed))
    mixed.to_parquet(file)
    mixed.push_to_hub(repo, private=True)
    return len(mixed)


def pretend_other_base(folder: str, file: str, beside_the_true_one: bool) -> None:
    import datasets

    rows = datasets.load_dataset(folder, split="train")
    fingerprint = json.loads(rows[0]["search"])["base_fingerprint"]
    other = rows.map(lambda row: {"search": row["search"].replace(fingerprint, "0" * 16)})
    (datasets.concatenate_datasets([rows, other]) if beside_the_true_one else other).to_parquet(file)


def without_column(folder: str, file: str, column: str) -> None:
    import datasets

    datasets.load_dataset(folder, split="train").remove_columns(column).to_parquet(file)


# Faults


def run_side_by_side(work: list[tuple[str, str, str, str]]) -> list[str | None]:
    """Push or load each (action, repository, folder, cache); its sentence, or None when it went well."""
    from concurrent.futures import ThreadPoolExecutor

    _prepare()

    def run(item: tuple[str, str, str, str]) -> str | None:
        action, repo, folder, cache = item
        return _push(repo, folder) if action == "push" else _load(repo, cache)

    with ThreadPoolExecutor(len(work)) as threads:
        return list(threads.map(run, work))


def _push(repo: str, folder: str) -> str | None:
    from drllm_adapter import DrLLMError
    from drllm_adapter.hub.push import prepare_push, push

    try:
        with prepare_push(folder, repo) as plan:
            push(plan)
    except DrLLMError as error:
        return str(error)
    return None


def _load(repo: str, cache: str) -> str | None:
    from drllm_adapter import DrLLMError
    from drllm_adapter.adapter.integrity import check_adapter_folder
    from drllm_adapter.models.download import fetch_adapter

    try:
        check_adapter_folder(fetch_adapter(repo, cache_dir=cache), repo)
    except DrLLMError as error:
        return str(error)
    return None


def push_after_each_other_was_prepared(repo: str, folders: list[str]) -> list[str | None]:
    from contextlib import ExitStack

    from huggingface_hub import HfApi

    from drllm_adapter import DrLLMError
    from drllm_adapter.hub.push import prepare_push, push

    HfApi().create_repo(repo)
    sentences: list[str | None] = []
    with ExitStack() as stack:
        for plan in [stack.enter_context(prepare_push(folder, repo)) for folder in folders]:
            try:
                push(plan)
                sentences.append(None)
            except DrLLMError as error:
                sentences.append(str(error))
    return sentences


def load_with_small_files_only(repo: str, cache: str) -> str | None:
    """The kernel refuses to write more than a few thousand bytes to any file, as a full disk does."""
    import resource

    _prepare()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        return _load(repo, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Bases in folders


def texts_of(repo: str, kind: str) -> dict[str, str]:
    """What the files of a repository say; of Parquet, its rows."""
    import pyarrow.parquet as pq
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(repo, repo_type=kind))
    texts = {}
    for path in folder.rglob("*"):
        if path.is_file():
            is_rows = path.suffix == ".parquet"
            content = repr(pq.read_table(path).to_pylist()) if is_rows else path.read_bytes().decode(errors="replace")
            texts[path.relative_to(folder).as_posix()] = content
    return texts


def load_or_say(how: str, repo: str, **options: Any) -> str | None:
    """What the library says when it cannot load the adapter without being told the base."""
    try:
        load(how, repo, "", **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def warnings_of_a_push(base: str, repo: str, seed: int) -> tuple[Any, list[str]]:
    """PEFT's own `push_to_hub`: what the adapter answers, and what the user was told."""
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        answer = push_with_peft(base, repo, seed)
    return answer, [str(item.message) for item in caught]


def push_lora(base: str, repo: str, adapter_name: str) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config, adapter_name).push_to_hub(repo)


def load_by_card(repo: str) -> tuple[list[float], list[list[int]]]:
    """What the adapter answers when the code on its card loads it."""
    import re

    code = re.search(r"```python\n(.*?)```", read(repo, "README.md"), re.S)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1], names)
    return _answer(names["model"])


# Tokens


def share_loudly(base: str, adapter: str, again: str, unknown_token: str) -> None:
    """Push and load in every way, well and badly, with every logger at DEBUG and every exception printed in whole."""
    import logging
    import traceback

    logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(name)s: %(message)s")
    _prepare()
    import datasets
    import peft
    import transformers
    from huggingface_hub import constants
    from huggingface_hub import logging as hub_logging

    for library in (datasets.logging, transformers.logging, hub_logging):
        library.set_verbosity_debug()
    for name in list(logging.root.manager.loggerDict):
        logging.getLogger(name).setLevel(logging.DEBUG)

    def attempt(action: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return action(*arguments, **options)
        except Exception as error:
            print("".join(traceback.format_exception(error)))
            return None

    def push(repo: str, *options: str) -> None:
        print(*drllm("push", adapter, repo, *options))
        attempt(_push_or_raise, repo, adapter)

    doors = ("PeftModel", "AutoPeftModel", "AutoModel", "load_adapter", "pipeline", "load_routed")
    token = os.environ["HF_TOKEN"]
    push("me/loud", "--private")
    for repo in ("me/loud-403", "me/loud-cut", "me/loud-lost"):
        push(repo)
    loaded = [attempt(load, how, "me/loud", base) for how in doors]
    print(f"pushed me/loud, {sum(answer is not None for answer in loaded)} doors")
    rows = datasets.Dataset.from_dict({"id": ["a", "b"]})
    rows.push_to_hub("me/loud-rows", private=True)
    datasets.load_dataset("me/loud-rows")

    # The token as an argument, of somebody who is not logged in; what was loaded with it is saved and pushed again.
    del os.environ["HF_TOKEN"]
    model = peft.AutoPeftModelForCausalLM.from_pretrained("me/loud", token=token)
    model.save_pretrained(again)
    model.push_to_hub("me/loud-again", token=token, private=True)
    for repo in ("me/loud-403", "me/loud-lost"):
        attempt(model.push_to_hub, repo, token=token)
    attempt(datasets.load_dataset, "me/loud-rows")
    for how in doors:
        attempt(load, how, "me/loud", base)
        attempt(load, how, "me/no-such-thing", base, token=token)

    # One that the Hub does not know, which does not look like one.
    os.environ["HF_TOKEN"] = unknown_token
    shutil.move(constants.HF_HUB_CACHE, f"{again}-cache")  # kept to be looked at
    push("me/loud")
    for how in doors:
        attempt(load, how, "me/loud", base)
    attempt(model.push_to_hub, "me/loud", token=unknown_token)
    attempt(rows.push_to_hub, "me/loud-rows", token=unknown_token)


def _push_or_raise(repo: str, folder: str) -> None:
    from drllm_adapter.hub.push import prepare_push, push

    with prepare_push(folder, repo) as plan:
        push(plan)
