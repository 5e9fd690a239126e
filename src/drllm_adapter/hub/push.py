"""Putting an adapter or a supervision set on the Hub: what would be uploaded, and the one commit that uploads it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from peft.utils import CONFIG_NAME
from rich.table import Table

from ..adapter.config import CARD
from ..adapter.integrity import check_adapter_folder
from ..demo import is_demo
from ..errors import DrLLMError
from ..files import MARKER, REPORT, folder_kind, writing
from ..models.download import ADAPTER, ADAPTER_FILES, CHECKPOINT, HubName, is_hub_name, split_revision
from ..models.hub_errors import explained
from ..search.runner import SUMMARY
from ..supervision.rows import DATA, INFO, check_rows
from ..supervision.rows import KIND as SUPERVISION
from .cards import write_card
from .eval_results import FOLDER as EVAL_RESULTS
from .shared_base import check_base, share_base

# Nothing else is uploaded, whatever else lies in the folder.
_FILES = {
    ADAPTER: (CARD, *ADAPTER_FILES, MARKER, "*.png", f"*/{REPORT}", f"*/{MARKER}", "*/*.png", f"{EVAL_RESULTS}/*.yaml"),
    CHECKPOINT: (CARD, "*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"),
    SUPERVISION: (CARD, f"{DATA.parent}/*.parquet", INFO, SUMMARY, MARKER, "*.png"),
}
SPACE = "space"
"""What `space.prepare_space` makes, and how the Hub calls the kind of its repository."""
_LARGE = (".safetensors", ".parquet")


@dataclass(frozen=True)
class Push:
    """What a push uploads, and where to.

    Attributes:
        contents: "adapter", "checkpoint", "supervision set" or "space".
        kind: "model", "dataset" or "space".
        repo: `owner/name`.
        revision: branch; None is the main one.
        folder: copy of what is uploaded, with the card as it will be.
        base: the base model, as the uploaded files name it.
        head: commit that the new one follows; None for a new repository or branch.
        new: "repository" or "branch" where there is none of that name yet; None also where the Hub was not asked.
    """

    contents: str
    kind: str
    repo: str
    revision: str | None
    folder: Path
    base: str
    head: str | None
    new: str | None

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every file."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in files}

    @property
    def card(self) -> str:
        return (self.folder / CARD).read_text(encoding="utf-8")

    def table(self) -> Table:
        """The files for people."""
        place = f"{self.repo}@{self.revision}" if self.revision else self.repo
        state = f", after commit {self.head[:7]}" if self.head else f", a new {self.new}" if self.new else ""
        table = Table("file", "bytes", title=f"{self.kind} {place}{state}", title_justify="left")
        for name, size in self.sizes.items():
            table.add_row(name, f"{size:,}")
        table.caption, table.caption_justify = f"base model: {self.base or 'not named'}", "left"
        return table

    @property
    def advice(self) -> str | None:
        """What would make the upload better, in a sentence; None when nothing would."""
        if is_hub_name(self.base) or is_demo(self.base):
            return None
        if not self.base:
            return "The files name no base model; if it is on the Hub, push with --base owner/name."
        return (
            f"The base model is a folder here, of which only the name {self.base} is uploaded; if it is on the Hub, "
            f"push with --base owner/name, and others need not say where their copy is."
        )

    def to_json(self) -> dict[str, Any]:
        facts = {name: getattr(self, name) for name in ("kind", "repo", "revision", "base", "head", "card")}
        return {**facts, "files": self.sizes}


@contextmanager
def prepare_push(
    folder: str | os.PathLike[str],
    repo: str,
    *,
    revision: str | None = None,
    base: str | None = None,
    ask_hub: bool = True,
) -> Iterator[Push]:
    """Look at an adapter or a supervision set and at what the repository holds; nothing is changed anywhere.

    Args:
        folder: that `drllm train`, `drllm search` or `save_pretrained` wrote.
        repo: `owner/name`, or `owner/name@branch`.
        revision: branch; None is the one in `repo`, or the main one.
        base: name of the base model on the Hub, `owner/name` or `owner/name@revision`; None is the one in the folder's
            files, where a folder of this disk is cut down to its name.
        ask_hub: False looks at the folder alone: neither at what was written into the card on the Hub, nor whether
            `base` is there and fits.

    Raises:
        DrLLMError: the folder holds neither, is damaged or unfinished, the Hub cannot be asked, `base` is not there or
            does not fit, or see `write_card`.
    """
    folder = Path(folder)
    place, revision = parse_place(repo, revision)
    contents = _contents(folder)
    kind = "dataset" if contents == SUPERVISION else "model"
    head, new, on_hub = look_at_hub(place.repo, kind, revision, repo) if ask_hub else (None, None, None)
    if base is not None and ask_hub:
        check_base(base, folder)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / folder.resolve().name
        with writing(copy):
            copy_files(contents, folder, copy)
            named = share_base(copy, base)
            write_card(copy, repo_id=place.repo, base=base and split_revision(base)[0], on_hub=on_hub)
        yield Push(contents, kind, place.repo, revision, copy, named, head, new)


def push(
    plan: Push, *, private: bool | None = None, create_pr: bool = False, message: str | None = None
) -> tuple[str, str]:
    """Upload it in one commit; the repository and the branch are made where they do not exist.

    Args:
        private: of a new repository; None is the account's own default.
        create_pr: propose the commit as a pull request in place of changing the main branch.
        message: of the commit.

    Returns:
        The commit, and the address of it or of the pull request.

    Raises:
        DrLLMError: the upload failed or the repository changed since `prepare_push`; it holds what it held before. A
            repository or branch that was made for it stays, and the message says so: to delete is not ours.
    """
    if create_pr and plan.revision not in (None, "main"):
        raise DrLLMError(
            f"a pull request goes to the main branch, but the branch {plan.revision!r} was given; drop one of them."
        )
    what = {
        ADAPTER: "Routers",
        CHECKPOINT: "A static path",
        SUPERVISION: "Supervision set",
        SPACE: "The page of a routed model",
    }[plan.contents]
    files = [CommitOperationAdd(name, plan.folder / name) for name in plan.sizes]
    api, head, made = HfApi(), plan.head, None
    try:
        with explained(plan.repo, "uploaded"):
            if head is None:
                api.create_repo(plan.repo, repo_type=plan.kind, private=private, exist_ok=True,
                                space_sdk="gradio" if plan.kind == SPACE else None)  # fmt: skip
                made = "repository" if plan.new == "repository" else None
                if plan.revision not in (None, "main"):
                    api.create_branch(plan.repo, branch=str(plan.revision), repo_type=plan.kind, exist_ok=True)
                    made = plan.new
                head = api.repo_info(plan.repo, repo_type=plan.kind, revision=plan.revision).sha
            # Not upload_folder, which commits large folders in parts.
            commit = api.create_commit(
                plan.repo,
                files,
                commit_message=message or f"{what}, by drllm-adapter",
                repo_type=plan.kind,
                revision=plan.revision,
                create_pr=create_pr,
                # Refused when somebody else was faster: their files and ours must not mix.
                parent_commit=head,
            )
    except DrLLMError as error:
        if made is None:
            raise
        raise DrLLMError(f"{str(error).removesuffix('.')}; the {made} that was made for it stays.") from None
    return commit.oid, commit.pr_url or commit.commit_url


def parse_place(repo: str, revision: str | None) -> tuple[HubName, str | None]:
    """The repository of a push and its branch, None for the main one.

    Raises:
        DrLLMError: it is no whole repository, or two branches are named.
    """
    try:
        place = HubName.parse(repo)
    except DrLLMError:
        raise DrLLMError(
            f"the repository of a push must be owner/name or owner/name@branch, but {repo!r} was given; correct it."
        ) from None
    if place.subfolder is not None:
        raise DrLLMError(f"a push needs a whole repository, owner/name, but {repo!r} was given; leave out the folder.")
    if place.revision and revision and place.revision != revision:
        raise DrLLMError(f"a push goes to one branch, but {place.revision!r} and {revision!r} were given; drop one.")
    return place, place.revision or revision


def copy_files(contents: str, folder: Path, copy: Path) -> None:
    """Copy what is uploaded of a folder; large files become links."""
    for path in (path for pattern in _FILES[contents] for path in folder.glob(pattern) if path.is_file()):
        target = copy / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in _LARGE:
            target.symlink_to(path.resolve())
        else:
            shutil.copyfile(path, target)


def _contents(folder: Path) -> str:
    """What a folder holds, by its marker or its files, after a check that it is whole."""
    marked = folder_kind(folder)
    if marked == ADAPTER or (marked is None and (folder / CONFIG_NAME).is_file()):
        check_adapter_folder(folder)
        return ADAPTER
    if marked == SUPERVISION:
        check_rows(folder)
        return SUPERVISION
    if marked == CHECKPOINT:
        return CHECKPOINT
    found = f"holds: {marked}" if marked else ("holds neither" if folder.is_dir() else "does not exist")
    raise DrLLMError(
        f"{folder} must be an adapter, a supervision set or an exported checkpoint to be pushed, but it {found}; "
        f"name a folder that drllm train, drllm search, drllm export or save_pretrained wrote."
    )


def look_at_hub(repo: str, kind: str, revision: str | None, named: str) -> tuple[str | None, str | None, str | None]:
    """The repository's commit, what is not there yet ("repository", "branch" or None), and the text of its card."""
    with explained(named, "looked at"):
        try:
            head = HfApi().repo_info(repo, repo_type=kind, revision=revision).sha
            card = Path(hf_hub_download(repo, CARD, repo_type=kind, revision=head))
        except RevisionNotFoundError:
            return None, "branch", None
        except RepositoryNotFoundError:
            return None, "repository", None
        except LocalEntryNotFoundError:  # the network, not the Hub
            raise
        except EntryNotFoundError:
            return head, None, None
    try:
        return head, None, card.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DrLLMError(f"the card of {named} must be UTF-8, but it is not; correct {CARD} on the Hub.") from error
