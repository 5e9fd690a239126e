"""The page in a real browser: what is typed, clicked and moved changes what is drawn."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_session import PROMPTS, fresh_model
from transformers import AutoTokenizer

from drllm_adapter.app.session import Ask, Session
from drllm_adapter.decisions import CLASS_NAMES
from drllm_adapter.demo import BASE
from drllm_adapter.tasks import load_questions
from drllm_adapter.workflow import evaluate_adapter

gradio = pytest.importorskip("gradio", reason="the page needs the extra app")


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "adapter"
    model = fresh_model()
    model.peft_config["default"].base_model_name_or_path = str(BASE)
    model.save_pretrained(folder)
    evaluate_adapter(str(folder), load_questions("khop", limit=20), folder / "evaluation", mode="cloze")
    return folder


def test_examples_come_from_the_card_or_are_easy_and_hard(adapter: Path, tmp_path: Path) -> None:
    from drllm_adapter.app.page import examples_of

    hops = [int(re.findall(r"(\d) hops", text)[0]) for text in examples_of(adapter, str(BASE))]
    assert hops == [1, 3, 5, 7]
    assert len(examples_of(tmp_path, "owner/name")) > 2
    (tmp_path / "README.md").write_text("---\nwidget:\n- text: Is it?\n- src: x.png\n---\nCard.\n")
    assert examples_of(tmp_path, "owner/name") == ["Is it?"]


@pytest.fixture(scope="module")
def address(adapter: Path) -> Iterator[str]:
    from drllm_adapter.app.page import launch

    yield launch(str(adapter), block=False)
    gradio.close_all()


@pytest.fixture(scope="module")
def talker() -> Session:
    """A model with room for long answers, which it does not end by itself, and with a chat template."""
    model = fresh_model(max_position_embeddings=2048)
    model.generation_config.eos_token_id = [-1]
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.chat_template = "{% for message in messages %}a>b {{ message['content'] }}{% endfor %}"
    return Session(model, tokenizer)


def test_no_folder_of_this_disk_is_in_the_page(talker: Session, adapter: Path, tmp_path: Path) -> None:
    from drllm_adapter.app.page import build_page

    copy = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    path = copy / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "/home/me/tiny"}))
    shown = json.dumps(build_page(talker, "talker", copy).get_config_file(), default=str)
    assert "base model tiny." in shown
    assert "/home/me" not in shown


@pytest.fixture(scope="module")
def long_address(address: str, adapter: Path, talker: Session) -> str:
    from drllm_adapter.app.page import build_page, serve

    return serve(build_page(talker, "talker", adapter))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any, address: str) -> Iterator[Any]:
    yield from opened(chromium, address)


@pytest.fixture
def long_page(chromium: Any, long_address: str) -> Iterator[Any]:
    yield from opened(chromium, long_address)


def opened(chromium: Any, address: str) -> Iterator[Any]:
    page = chromium.new_page(viewport={"width": 1180, "height": 900})
    page.set_default_timeout(60_000)
    asked: list[str] = []
    broken: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#path .block")
    yield page
    assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))]  # nothing of others
    assert not broken
    page.close()


def blocks(page: Any) -> list[str]:
    return [str(page.locator("#path .block").nth(index).get_attribute("class")) for index in range(8)]


def ask(page: Any, prompt: str) -> None:
    page.locator("#prompt textarea").fill(prompt)
    page.locator("#prompt textarea").press("Enter")


def done(page: Any) -> None:
    page.wait_for_function("/The answers (are the same|differ)/.test(document.querySelector('#answers').innerText)")


def set_slider(page: Any, name: str, value: float) -> None:
    field = page.locator(f"#{name} input[type=number]")
    field.fill(str(value))
    field.press("Tab")


@pytest.mark.browser
def test_type_move_and_force(page: Any, talker: Session) -> None:
    ask(page, PROMPTS[1])
    done(page)
    chosen = blocks(page)
    assert "block execute" in chosen
    # Every block once: the base's answer.
    set_slider(page, "depth", 0.5)
    page.wait_for_function("document.querySelectorAll('#path .block.execute').length == 8")
    page.wait_for_function("document.querySelector('#answers').innerText.includes('The answers are the same')")
    set_slider(page, "budget", 3)
    page.wait_for_function("document.querySelector('#path').innerText.includes('3 block passes')")
    set_slider(page, "budget", 16)
    page.wait_for_function("document.querySelectorAll('#path .block.execute').length == 8")
    set_slider(page, "depth", -0.5)
    set_slider(page, "price", 3)
    priced = talker.path(Ask(PROMPTS[1], "plain", price=3)).decisions
    assert priced != talker.path(Ask(PROMPTS[1], "plain")).decisions
    expected = [f"block {CLASS_NAMES[decision]}" for decision in priced]
    page.wait_for_function(f"[...document.querySelectorAll('#path .block')].map(b => b.className)+'' == {expected}+''")
    set_slider(page, "price", 0)
    set_slider(page, "depth", 0.5)
    page.wait_for_function("document.querySelectorAll('#path .block.execute').length == 8")
    # A click on a block, then the keyboard: repeat, skip, and the router's own again.
    page.locator("#path .block").nth(3).click()
    page.wait_for_selector("#path .block.repeat.forced >> nth=0")
    assert blocks(page)[3] == "block repeat forced"
    page.wait_for_function("document.querySelector('#path').innerText.includes('9 block passes')")
    page.locator("#path .block").nth(3).focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#path .block.skip.forced")
    # The drawing is a new one, and the keyboard is still at its block.
    page.wait_for_function("document.activeElement.dataset.block == '3'")
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelectorAll('#path .forced').length == 1")  # of the legend
    set_slider(page, "depth", -0.5)
    page.wait_for_function(f"[...document.querySelectorAll('#path .block')].map(b => b.className)+'' == {chosen!r}+''")


def tab_to(page: Any, selector: str) -> None:
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    pytest.fail(f"the keyboard does not come to {selector}")


@pytest.mark.browser
def test_keyboard_only(page: Any) -> None:
    page.wait_for_function("document.activeElement.matches('#prompt textarea')")
    page.keyboard.type(PROMPTS[1])
    page.keyboard.press("Enter")
    done(page)
    tab_to(page, "button.gallery-item")
    page.keyboard.press("Enter")
    page.wait_for_function(f"document.querySelector('#prompt textarea').value != {PROMPTS[1]!r}")
    done(page)
    tab_to(page, "#path .block[data-block='2']")
    assert page.locator("#path .block[data-block='2'] .tip").is_visible()
    page.keyboard.press("Enter")
    page.wait_for_selector("#path .block.forced[data-block='2']")
    tab_to(page, "#depth input[type=range]")
    page.keyboard.press("Home")
    page.wait_for_function("document.querySelectorAll('#path .block.skip:not(.forced)').length == 7")
    tab_to(page, "#free")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('#path .block.skip:not(.forced)').length == 8")
    tab_to(page, "[role=tab]:nth-of-type(2)")
    page.keyboard.press("Enter")
    tab_to(page, "#lines textarea")
    page.keyboard.press("Control+a")
    page.keyboard.type(PROMPTS[0])
    tab_to(page, "#draw")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('#many g').length == 1")


@pytest.mark.browser
def test_errors_are_sentences_in_the_page(page: Any) -> None:
    ask(page, " ".join(PROMPTS * 2))
    page.wait_for_selector("#answers .error")
    assert "fit the model's 128 positions" in page.locator("#answers").inner_text()
    set_slider(page, "budget", 6)
    ask(page, PROMPTS[1])
    done(page)
    page.get_by_role("tab", name="Many prompts").click()
    page.locator("#lines textarea").fill("")
    page.locator("#draw").click()
    page.wait_for_selector("#many .error")
    assert "must be of 1 to 300 prompts, but 0 were given" in page.locator("#many").inner_text()


@pytest.mark.browser
def test_many_prompts_are_one_picture(page: Any) -> None:
    page.get_by_role("tab", name="Many prompts").click()
    page.locator("#lines textarea").fill("\n".join(PROMPTS))
    page.locator("#draw").click()
    page.wait_for_function("document.querySelectorAll('#many g').length == 7")
    drawn = page.eval_on_selector_all("#many g", "rows => rows.map(row => Number(row.lastChild.textContent))")
    assert drawn == sorted(drawn)


@pytest.mark.browser
def test_many_prompts_of_a_file(page: Any, tmp_path: Path) -> None:
    (tmp_path / "asked.jsonl").write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in PROMPTS[:3]))
    (tmp_path / "broken.jsonl").write_text("{")
    page.get_by_role("tab", name="Many prompts").click()
    page.locator("#lines textarea").fill("not asked, since there is a file")
    page.locator("#file input[type=file]").set_input_files(tmp_path / "asked.jsonl")
    page.wait_for_selector("#file >> text=asked.jsonl")
    page.locator("#draw").click()
    page.wait_for_function("document.querySelectorAll('#many g').length == 3")
    titles = page.eval_on_selector_all("#many g title", "found => found.map(title => title.textContent)")
    assert sorted(titles) == sorted(PROMPTS[:3])
    page.get_by_role("button", name="Remove").or_(page.locator("#file button[aria-label=Clear]")).first.click()
    page.locator("#file input[type=file]").set_input_files(tmp_path / "broken.jsonl")
    page.wait_for_selector("#file >> text=broken.jsonl")
    page.locator("#draw").click()
    page.wait_for_selector("#many .error")
    said = page.locator("#many").inner_text()
    assert "broken.jsonl" in said
    assert "/tmp" not in said


@pytest.mark.browser
def test_the_adapters_evaluation(page: Any, adapter: Path) -> None:
    report = json.loads((adapter / "evaluation" / "report.json").read_text())
    page.get_by_role("tab", name="Evaluation").click()
    table = page.locator("table:visible")
    assert [cell.strip() for cell in table.locator("tbody td").all_inner_texts()][1:4] == [
        "accuracy", "20", f"{report['base']['value']:.3f}"
    ]  # fmt: skip
    assert f"{report['mean_passes']:.2f} of 8" in table.inner_text()
    figure = page.locator("img[alt=layers]:visible")
    assert figure.evaluate("image => image.complete && image.naturalWidth > 100")


def texts(page: Any) -> list[str]:
    return [text.removesuffix(" ▌") for text in page.locator("#answers .text").all_inner_texts()]


def last_texts(session: Session, ask: Ask) -> list[str]:
    *_, (routed, base) = session.side_by_side(ask)
    return [routed.text, base.text]


@pytest.mark.browser
def test_a_long_answer_streams_to_its_end(long_page: Any, talker: Session) -> None:
    set_slider(long_page, "length", 512)
    ask(long_page, PROMPTS[0])
    long_page.wait_for_function("document.querySelector('#answers .text')?.innerText.length > 20")
    early = texts(long_page)
    done(long_page)
    assert "512" in long_page.locator("#answers table").inner_text()
    assert texts(long_page) == last_texts(talker, Ask(PROMPTS[0], max_new_tokens=512))
    assert all(long.startswith(start) for long, start in zip(texts(long_page), early, strict=True))
    # In a box that is full, what is new is in sight.
    long_page.add_style_tag(content="#answers .text { max-height: 40px !important }")
    box = long_page.locator("#answers .text").first
    assert box.evaluate("box => box.scrollHeight > box.clientHeight")
    assert box.evaluate("box => Math.abs(box.scrollTop) < 2 || box.scrollTop + box.clientHeight > box.scrollHeight - 2")


@pytest.mark.browser
def test_a_long_answer_is_stopped(long_page: Any, talker: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    call = talker._call

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return call(*arguments)

    monkeypatch.setattr(talker, "_call", counted)
    set_slider(long_page, "length", 512)
    ask(long_page, PROMPTS[1])
    long_page.wait_for_function("document.querySelector('#answers .text')?.innerText.length > 20")
    long_page.locator("#stop").click()
    long_page.wait_for_function("document.querySelector('#answers').innerText.includes('Stopped.')")
    made, said = calls, texts(long_page)
    assert made < 2 * 512
    long_page.wait_for_timeout(500)
    assert (calls, texts(long_page)) == (made, said)  # nothing is computed on
    set_slider(long_page, "length", 5)
    ask(long_page, PROMPTS[1])
    done(long_page)
    assert all(long.startswith(short) for long, short in zip(said, texts(long_page), strict=True))


@pytest.mark.browser
def test_two_visitors_do_not_disturb_each_other(
    chromium: Any, long_page: Any, long_address: str, talker: Session
) -> None:
    pages = opened(chromium, long_address)
    other = next(pages)
    set_slider(other, "depth", 0.3)
    set_slider(other, "price", -0.5)
    for page, prompt in ((long_page, PROMPTS[2]), (other, PROMPTS[3])):
        set_slider(page, "length", 100)
        ask(page, prompt)
    for page, asked in (
        (long_page, Ask(PROMPTS[2], max_new_tokens=100)),
        (other, Ask(PROMPTS[3], max_new_tokens=100, depth_control=0.3, price=-0.5)),
    ):
        done(page)
        assert texts(page) == last_texts(talker, asked)
    assert list(pages) == []


@pytest.mark.browser
def test_wording(long_page: Any, talker: Session) -> None:
    set_slider(long_page, "length", 4)
    ask(long_page, PROMPTS[4])
    done(long_page)
    in_chat = talker.path(Ask(PROMPTS[4], "chat"))
    plain = talker.path(Ask(PROMPTS[4], "plain"))
    assert in_chat.probabilities != plain.probabilities
    tips = "document.querySelector('#path .block .tip').innerText"
    shown = [f"{path.probabilities[0][1]:.0%}" for path in (in_chat, plain) if path.probabilities[0]]
    assert shown[0] != shown[1]
    long_page.locator("#path .block").first.hover()
    long_page.wait_for_function(f"{tips}.includes({shown[0]!r})")
    long_page.get_by_label("plain").check()
    long_page.locator("#path .block").first.hover()
    long_page.wait_for_function(f"{tips}.includes({shown[1]!r})")


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(chromium: Any, address: str, scheme: str) -> None:
    page = chromium.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page.set_default_timeout(60_000)
    page.goto(f"{address}?__theme={scheme}")
    ask(page, PROMPTS[2])
    done(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    # Text is told apart from what lies below it.
    colours = page.evaluate("""() => {
        const text = document.querySelector('#answers .text'), card = text.parentElement;
        const light = value => value.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 765;
        return [light(getComputedStyle(text).color), light(getComputedStyle(card).backgroundColor)];
    }""")
    assert abs(colours[0] - colours[1]) > 0.6
    assert (colours[0] > colours[1]) == (scheme == "dark")
    page.close()
