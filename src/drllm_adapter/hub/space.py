"""A Space that shows an adapter: the page of `drllm app`, on the Hub."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from huggingface_hub import RepoCard

from ..adapter.config import CARD
from ..adapter.integrity import check_adapter_folder, read_adapter_config
from ..demo import is_demo
from ..errors import DrLLMError
from ..files import write_text_atomic, writing
from ..models.download import ADAPTER, fetch_adapter, is_hub_name, split_revision
from .push import SPACE, Push, copy_files, look_at_hub, parse_place
from .shared_base import check_base, share_base

_APP = '''"""Routed and base model side by side, with the path of every prompt."""

from drllm_adapter.app.page import launch

launch("{adapter}")
'''
_README = """# {title}

What [drllm-adapter](https://pypi.org/project/drllm-adapter/) routers skip, execute and repeat for your
prompt, and how the answer differs from the base model's.
"""


@contextmanager
def prepare_space(
    adapter: str | os.PathLike[str],
    space: str,
    *,
    revision: str | None = None,
    base: str | None = None,
    ask_hub: bool = True,
) -> Iterator[Push]:
    """Write the files of a Space for an adapter; nothing is changed anywhere. `push.push` uploads it.

    Args:
        adapter: a folder, whose files go into the Space; or a name on the Hub, which the Space names.
        space: `owner/name`.
        revision, base, ask_hub: see `prepare_push`.

    Raises:
        DrLLMError: as `prepare_push`; or the base is on the Hub under no name, so that a Space could not load it.
    """
    place, revision = parse_place(space, revision)
    local = Path(adapter).exists()
    if local:
        check_adapter_folder(Path(adapter))
    if not local and base is not None:
        raise DrLLMError(
            f"a Space of an adapter on the Hub takes the base that the adapter names, but --base {base} was given; "
            f"leave it out."
        )
    if base is not None and ask_hub:
        check_base(base, Path(adapter))
    head, new, card = look_at_hub(place.repo, SPACE, revision, space) if ask_hub else (None, None, None)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / place.repo.split("/")[1]
        with writing(copy):
            copy.mkdir()
            if local:
                copy_files(ADAPTER, Path(adapter), copy / "adapter")
                named = share_base(copy / "adapter", base)
            else:
                folder = fetch_adapter(adapter, weights=False)
                named = read_adapter_config(folder, str(adapter)).base_model_name_or_path or ""
            if not is_demo(named) and (not named or not is_hub_name(named)):
                raise DrLLMError(
                    f"a Space must load its base model from the Hub, but the adapter names {named or 'none'}; name it "
                    f"with --base owner/name."
                )
            (copy / "app.py").write_text(_APP.format(adapter="adapter" if local else str(adapter)), encoding="utf-8")
            (copy / "requirements.txt").write_text(
                f"drllm-adapter[app]=={version('drllm-adapter')}\n", encoding="utf-8"
            )
            title = "Layer routing" if local else f"Layer routing: {adapter}"
            fresh = RepoCard(f"---\ntitle: {place.repo.split('/')[1]}\n---\n\n{_README.format(title=title)}")
            # What somebody wrote into it on the Hub stays.
            shown = fresh if card is None else RepoCard(card, ignore_metadata_errors=True)
            models = [] if local else [str(adapter).partition("@")[0]]
            models += [] if is_demo(named) else [split_revision(named)[0]]
            about = {
                "sdk": "gradio",
                "sdk_version": _gradio(),
                "app_file": "app.py",
                **({"models": models} if models else {}),
            }
            for name, value in about.items():
                shown.data[name] = value
            write_text_atomic(copy / CARD, str(shown).rstrip() + "\n")
        yield Push(SPACE, SPACE, place.repo, revision, copy, named, head, new)


def _gradio() -> str:
    """The version of gradio that the Space is to have: the one here, or the oldest that the extra allows."""
    try:
        return version("gradio")
    except PackageNotFoundError:
        asked = next(line for line in requires("drllm-adapter") or () if line.startswith("gradio"))
        oldest = re.search(r">=([\d.]+)", asked)
        assert oldest is not None
        return f"{oldest[1]}.0" if oldest[1].count(".") == 1 else oldest[1]
