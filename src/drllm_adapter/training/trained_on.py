"""What an adapter keeps of the prompts that it was trained on: marks of some of them, and how they were worded."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_KEPT = 64


def marks_of(prompts: Iterable[str]) -> list[str]:
    """Short hashes of at most 64 of the prompts: the lowest, so that chance chooses them."""
    return sorted(_hashes(prompts))[:_KEPT]


def wording(prompts: Iterable[tuple[str, bool]]) -> str:
    """How prompts and whether a chat template made them: "chat", "question", or "plain" for others and mixtures."""
    kinds = {
        "chat" if templated else "question" if text.startswith("Question: ") else "plain" for text, templated in prompts
    }
    return kinds.pop() if len(kinds) == 1 else "plain"


def trained_on(
    training: Mapping[str, Any], prompts: Sequence[str], mode: str, sources: Sequence[Mapping[str, Any]]
) -> str | None:
    """A sentence that says that some of the prompts were, or may have been, trained on; None where nothing says so.

    Args:
        training: the record of the adapter.
        mode: of the prompts; another one words the same questions differently.
        sources: of the prompts, as `tasks.sources_of` names them.
    """
    supervision = training.get("supervision", {})
    marks = supervision.get("marks", [])
    shared = len(_hashes(prompts).intersection(marks))
    if shared:
        return (
            f"{shared} of {len(marks)} training questions that the adapter keeps marks of are among those evaluated, "
            f"so this does not show how it does on new ones."
        )
    if marks and supervision.get("mode") == mode:
        return None
    same = dict.fromkeys(source["name"] for source in sources if source in supervision.get("sources", []))
    if not same:
        return None
    return f"the adapter was trained on questions of {', '.join(same)}, which may be among those evaluated."


def _hashes(prompts: Iterable[str]) -> set[str]:
    return {hashlib.sha256(prompt.encode()).hexdigest()[:12] for prompt in prompts}
