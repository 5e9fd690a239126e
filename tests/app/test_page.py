"""The page in a real browser: what is typed, clicked and moved changes what is drawn."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_session import PROMPTS, fresh_model

from drllm_adapter.demo import BASE

gradio = pytest.importorskip("gradio", reason="the page needs the extra app")


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "adapter"
    model = fresh_model()
    model.peft_config["default"].base_model_name_or_path = str(BASE)
    model.save_pretrained(folder)
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
def test_type_move_and_force(page: Any) -> None:
    ask(page, PROMPTS[0])
    done(page)
    chosen = blocks(page)
    assert "block execute" in chosen
    # Every block once: the base's answer.
    set_slider(page, "depth", 0.5)
    page.wait_for_function("document.querySelectorAll('#path .block.execute').length == 8")
    page.wait_for_function("document.querySelector('#answers').innerText.includes('The answers are the same')")
    set_slider(page, "budget", 3)
    page.wait_for_function("document.querySelector('#path').innerText.includes('3 of 8 block passes')")
    set_slider(page, "budget", 16)
    page.wait_for_function("document.querySelectorAll('#path .block.execute').length == 8")
    # A click on a block, then the keyboard: repeat, skip, and the router's own again.
    page.locator("#path .block").nth(3).click()
    page.wait_for_selector("#path .block.repeat.forced >> nth=0")
    assert blocks(page)[3] == "block repeat forced"
    page.wait_for_function("document.querySelector('#path').innerText.includes('9 of 8 block passes')")
    page.locator("#path .block").nth(3).focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#path .block.skip.forced")
    page.locator("#path .block").nth(3).focus()
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelectorAll('#path .forced').length == 1")  # of the legend
    set_slider(page, "depth", -0.5)
    page.wait_for_function(f"[...document.querySelectorAll('#path .block')].map(b => b.className)+'' == {chosen!r}+''")


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
