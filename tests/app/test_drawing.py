"""What the page draws: every decision, what routers were sure of, and nobody's text as HTML."""

import re
from html.parser import HTMLParser

from drllm_adapter.app import drawing
from drllm_adapter.app.session import Answer, Path

PATH = Path((0, 1, 2, 1), (1, 1, 2, 1), ((0.2, 0.7, 0.1), None, (0.0, 0.25, 0.75), (0.1, 0.8, 0.1)))
EVIL = "<script>alert(1)</script> ${1 + 1} {{value}} & more"


class Seen(HTMLParser):
    """The elements and the text that a browser would see."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def answer(text: str, path: Path | None, **facts: object) -> Answer:
    given = {"prompt_tokens": 5, "tokens": 5, "prefill": 0.25, "decode": 2.0, "cache_bytes": 3 * 2**20, "ended": True}
    return Answer(text=text, path=path, **{**given, **facts})  # type: ignore[arg-type]


def test_a_block_is_a_button_that_says_what_it_does() -> None:
    seen = Seen(drawing.path(PATH, {0: 0}))
    buttons = [attributes for tag, attributes in seen.elements if tag == "button"]
    assert [button["class"] for button in buttons] == ["block skip forced", "block execute", "block repeat",
                                                       "block execute"]  # fmt: skip
    assert [button["data-block"] for button in buttons] == ["0", "1", "2", "3"]
    labels = [button["aria-label"] for button in buttons]
    assert labels[0] == "Block 0, skipped, forced; the router chose execute. Changes it."
    assert labels[1] == "Block 1, run, no router. Changes it."
    assert labels[2] == "Block 2, repeated, the router's choice. Changes it."
    assert "4 block passes base model: 4" in seen.text
    assert "25%" in seen.text
    assert "75%" in seen.text


def test_answers_and_what_they_took() -> None:
    html = drawing.answers(answer("one", PATH, cache_bytes=2**20, decode=1.0), answer("two", None), 4)
    text = Seen(html).text
    assert "The answers differ." in text
    assert re.search(r"tokens a second\s*4\.0\s*2\.0\s*2\.00", text)
    assert re.search(r"keys and values\s*1\.0 MiB\s*3\.0 MiB\s*0\.33", text)
    assert re.search(r"prompt to first token\s*250\.0 ms\s*250\.0 ms\s*1\.00", text)
    assert "The answers are the same." in drawing.answers(answer("a", PATH), answer("a", None), 4)
    growing = drawing.answers(answer("a", PATH, ended=False), answer("a", None), 4)
    assert "▌" in growing
    assert "are the same" not in growing
    stopped = drawing.answers(answer("a", PATH, ended=False), answer("a", None), 4, stopped=True)
    assert "Stopped." in stopped
    assert "▌" not in stopped


def test_many_paths_lie_under_each_other_by_passes() -> None:
    html = drawing.many([("long", (2, 2, 1)), ("short", (0, 0, 1)), ("middling", (1, 1, 1))])
    assert re.findall(r"<title>(\w+)</title>", html) == ["short", "middling", "long"]
    classes = [attributes["class"] for tag, attributes in Seen(html).elements if tag == "rect"]
    assert classes == ["skip", "skip", "execute", *["execute"] * 3, "repeat", "repeat", "execute"]
    assert "3 prompts, 3 paths, 3.00 of 3 block passes on average" in html


def test_texts_stay_texts() -> None:
    """Also to gradio, which looks for templates in what it is given."""
    for html in (
        drawing.answers(answer(EVIL, PATH), answer(EVIL, None), 4),
        drawing.many([(EVIL, (1, 1))]),
        drawing.error(EVIL),
        drawing.title(EVIL, EVIL),
    ):
        seen = Seen(html)
        assert "script" not in [tag for tag, _ in seen.elements]
        assert EVIL in seen.text
        assert "${" not in html
        assert "{{" not in html
