"""The parts of a card that are rewritten, between markers, and the rest, which belongs to whoever edits the card.

    <!-- drllm:results 4f0c2a9be1d3 -->
    ...
    <!-- /drllm:results -->

The marker carries a digest of what stands below it, so that a section which somebody changed by hand is told from one
that can be rewritten. The last line of a card carries one of the whole card, for the same question about all of it.
"""

import hashlib
import re

_SECTION = re.compile(
    r"<!-- drllm:(?P<name>[a-z]+)(?: (?P<digest>[0-9a-f]{12}))? -->\r?\n(?P<content>.*?)<!-- /drllm:(?P=name) -->", re.S
)
_SEAL = re.compile(r"\r?\n<!-- drllm written ([0-9a-f]{12}) -->\s*\Z")
_ANY_SEAL = re.compile(r"^<!-- drllm written [0-9a-f]{12} -->\r?\n?", re.M)


def seal(text: str) -> str:
    """The card with the digests of its sections, where they have none yet, and of the whole."""
    text = _SECTION.sub(lambda found: found[0] if found["digest"] else _section(found["name"], found["content"]), text)
    text = _ANY_SEAL.sub("", text).rstrip() + "\n"  # PEFT writes behind it, when it saves into the folder
    return f"{text}\n<!-- drllm written {_digest(text)} -->\n"


def is_edited(text: str) -> bool:
    """Whether somebody changed the card since it was sealed; a card without a seal is somebody's own."""
    found = _SEAL.search(text)
    return found is None or _digest(_SEAL.sub("", text)) != found[1]


def replace_sections(old: str, new: str) -> str:
    """`old` with the contents that its sections have in `new`.

    Sections changed by hand stay, sections that were taken out of `old` do not come back, and so does everything
    outside of sections.
    """
    contents = {found["name"]: found["content"] for found in _SECTION.finditer(new)}

    def current(found: re.Match[str]) -> str:
        changed = found["digest"] is not None and found["digest"] != _digest(found["content"])
        if changed or found["name"] not in contents:
            return found[0]
        section = _section(found["name"], contents[found["name"]])
        return section.replace("\n", "\r\n") if "\r\n" in old else section

    return _SECTION.sub(current, old)


def _section(name: str, content: str) -> str:
    return f"<!-- drllm:{name} {_digest(content)} -->\n{content}<!-- /drllm:{name} -->"


def _digest(text: str) -> str:
    # Neither line ends, which the Hub's editor may change, nor blank ones at the end count.
    return hashlib.sha256(text.replace("\r\n", "\n").rstrip().encode()).hexdigest()[:12]
