"""The page itself, in gradio: what is shown where, and what happens on a click.

Nothing is asked of the network: no telemetry, no fonts of others; figures lie inside the page.
"""

import time
from collections.abc import Iterator
from pathlib import Path as File
from threading import Event
from typing import Any

import gradio as gr
from huggingface_hub import ModelCard

from ..adapter.config import CARD
from ..decisions import EXECUTE, Decisions
from ..demo import is_demo, khop
from ..errors import DrLLMError, first_sentence
from ..files import MARKER, REPORT
from ..hub.reports import evaluations
from ..hub.wording import base_name
from ..models.download import ADAPTER_FILES, fetch, is_hub_name, load_training_record
from ..models.loading import load_adapter_config, load_routed
from ..tasks import load_questions
from . import drawing
from .session import Ask, Path, Session, base_path

MOST_PROMPTS = 300
"""In the picture of many prompts."""
DEAREST = 8.0
"""Price of a pass at the end of its slider: careful routers are e^5 times surer of a pass than of none."""
_EVERY = 0.08
"""Seconds between two states of a growing answer."""
_SETTLED = 0.15
"""Seconds that a slider must rest before the prompt is answered anew."""
# What a language model can say without a context: little to think about, and more.
_EXAMPLES = (
    "What is the capital of France?",
    "Name three colours.",
    "Explain in two sentences why the sky is blue.",
    "A shop sells pens at 3 for 2 euros. How much do 12 pens cost? Think step by step.",
)
_CLICKS = """
let last = null;
element.addEventListener('click', event => {
  const block = event.target.closest('[data-block]');
  if (!block) return;
  last = block.dataset.block;
  trigger('click', {block: Number(last)});
});
// The drawing is replaced by the new path: who used the keyboard goes on at the same block.
new MutationObserver(() => {
  if (last !== null && document.activeElement === document.body)
    element.querySelector(`[data-block="${last}"]`)?.focus({preventScroll: true});
}).observe(element, {childList: true, subtree: true});
"""

# Labels as text: the theme has them as badges, which break in narrow columns.
_PLAIN_LABELS = {
    f"block_{part}_{name}{dark}": value
    for part in ("title", "label")
    for name, value in (("background_fill", "none"), ("text_color", "*body_text_color"))
    for dark in ("", "_dark")
} | {"block_title_padding": "0", "block_title_text_weight": "600"}

Outputs = tuple[Any, ...]


def launch(
    adapter: str,
    *,
    base: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    host: str | None = None,
    port: int | None = None,
    open_browser: bool = False,
    block: bool = True,
) -> str:
    """Load an adapter and serve its page.

    Args:
        adapter, base, dtype, device: see `load_routed`.
        host: address to listen at; None is GRADIO_SERVER_NAME or this machine alone.
        port: None is GRADIO_SERVER_PORT or the first free one from 7860 on.
        block: whether to return only when the process is stopped.

    Returns:
        The page's address.

    Raises:
        DrLLMError: the adapter cannot be loaded, or the port is taken.
    """
    wanted = (*ADAPTER_FILES, CARD, f"*/{REPORT}", f"*/{MARKER}", "*/*.png")
    folder = fetch(adapter, "model", wanted)
    model, tokenizer = load_routed(adapter, base=base, dtype=dtype, device=device)
    session = Session(model, tokenizer)
    session.path(Ask("a", "plain"))  # the first call of a model takes longer than all others
    address = serve(build_page(session, _named(adapter), folder), host=host, port=port, open_browser=open_browser)
    if block:
        print(f"The page is at {address}; Ctrl+C ends it.", flush=True)
        Event().wait()
    return address


def serve(page: gr.Blocks, *, host: str | None = None, port: int | None = None, open_browser: bool = False) -> str:
    """Serve a page in the background and give its address; see `launch`."""
    try:
        _, address, _ = page.queue(default_concurrency_limit=16).launch(
            server_name=host, server_port=port, inbrowser=open_browser, share=False, quiet=True, ssr_mode=False,
            prevent_thread_lock=True, css=drawing.STYLE, footer_links=[],
            theme=gr.themes.Soft(
                font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
            ).set(**_PLAIN_LABELS),
        )  # fmt: skip
    except OSError as error:
        raise DrLLMError(
            f"the page must have a free port, but none was found ({first_sentence(error)}); choose another one by "
            f"--port."
        ) from error
    return str(address)


def build_page(session: Session, name: str, folder: File) -> gr.Blocks:
    """The page of an adapter.

    Args:
        name: the adapter's, as people call it.
        folder: the adapter's, for its examples and evaluations.
    """
    handlers = _Handlers(session)
    learnt = load_training_record(folder).get("supervision", {}).get("wording")
    template = getattr(session.tokenizer, "chat_template", None)
    wordings = ["chat"] * (template is not None) + ["plain"] + ["question"] * (learnt == "question")
    config = load_adapter_config(str(folder))
    base = str(config.base_model_name_or_path or "not named")
    called = base if is_hub_name(base) else base_name(base)
    about = f"{session.num_blocks} blocks, base model {called}. Click on a block to skip, run or repeat it."
    if is_demo(base):
        about = "The demo's model follows arrows between letters. Click on a block to skip, run or repeat it."
    with gr.Blocks(analytics_enabled=False, title=f"{name}: routing") as page:
        gr.HTML(drawing.title(name, about))
        with gr.Tab("One prompt"):
            with gr.Row():
                prompt = gr.Textbox(
                    label="Prompt", lines=1, max_lines=12, scale=4, autofocus=True, elem_id="prompt",
                    placeholder="Type and press Enter",
                )  # fmt: skip
                with gr.Column(scale=1, min_width=180):
                    answer = gr.Button("Answer", variant="primary", elem_id="answer")
                    stop = gr.Button("Stop", elem_id="stop")
            examples = gr.Examples(examples_of(folder, base), prompt, label="Examples")
            with gr.Row():
                with gr.Column(scale=5, min_width=300):
                    drawn = gr.HTML(
                        drawing.path(base_path(session.num_blocks), {}),
                        js_on_load=_CLICKS,
                        elem_id="path",
                        padding=True,
                    )
                    answers = gr.HTML(elem_id="answers", padding=True)
                with gr.Column(scale=2, min_width=270):
                    depth = gr.Slider(
                        -1, 1, session.depth_control, step=0.05, label="Depth control", elem_id="depth",
                        info="-1 skips all, -0.5 as trained, 0.5 runs all once, 1 repeats all",
                    )  # fmt: skip
                    price = gr.Slider(
                        -DEAREST, DEAREST, 0, step=0.25, label="Price of a pass", elem_id="price",
                        info="in the routers' logits: above 0 fewer passes, below 0 more",
                    )  # fmt: skip
                    most = 2 * session.num_blocks
                    budget = gr.Slider(
                        session.least_budget, most, session.layer_budget or most, step=1, label="Layer budget",
                        elem_id="budget", info=f"most block passes; {most} is no bound",
                    )  # fmt: skip
                    limit = handlers.longest
                    length = gr.Slider(
                        1, limit, min(64, limit), step=1, label="Longest answer", info="tokens", elem_id="length"
                    )  # fmt: skip
                    wording = gr.Radio(
                        wordings, value=learnt if learnt in wordings else wordings[0], label="Wording",
                        visible=len(wordings) > 1,
                    )  # fmt: skip
                    free = gr.Button("Let the routers choose again", elem_id="free", size="sm")
            forced, shown = gr.State({}), gr.State(None)

            inputs = [prompt, wording, length, depth, price, budget, forced]
            asked: dict[str, Any] = {"fn": handlers.answer, "inputs": inputs, "outputs": [drawn, answers, shown],
                     "show_progress": "hidden", "trigger_mode": "multiple"}  # fmt: skip
            fresh: dict[str, Any] = {"fn": lambda: {}, "outputs": forced, "queue": False, "show_progress": "hidden"}
            for begin in (answer.click, prompt.submit, examples.dataset.click, free.click):
                begin(**fresh).then(**asked)
            for changed in (depth.change, price.change, budget.change):
                changed(**asked)
            wording.input(**asked)
            drawn.click(
                handlers.force, [forced, shown], forced, queue=False, show_progress="hidden", trigger_mode="multiple"
            ).then(**asked)
            stop.click(handlers.stop, queue=False, show_progress="hidden")
        with gr.Tab("Many prompts"):
            with gr.Row():
                lines = gr.Textbox(label="A prompt a line", lines=8, max_lines=16, scale=2, elem_id="lines")
                file = gr.File(
                    label="or a file: .txt with a prompt a line, JSON lines, CSV or Parquet",
                    type="filepath",
                    scale=1,
                    elem_id="file",
                )
            draw = gr.Button("Draw their paths", variant="primary", elem_id="draw")
            gr.HTML(drawing.note("Wording, depth control, price and budget are those of the first tab."), padding=True)
            picture = gr.HTML(elem_id="many", padding=True)
            draw.click(handlers.many, [lines, file, wording, depth, price, budget], picture, show_progress="hidden")
            if is_demo(base):
                lines.value = "\n".join(item["question"] for item in khop.generate(28, seed=12345))
        measured = evaluations(folder, config)
        if measured:
            with gr.Tab("Evaluation"):
                for evaluation in measured:
                    gr.HTML(drawing.evaluation(evaluation, folder), padding=True)
        page.unload(handlers.forget)
    return page


def _named(adapter: str) -> str:
    """As people call it: no path of this disk."""
    path = File(adapter)
    return path.resolve().name if path.is_absolute() or adapter in (".", "..") else adapter


def examples_of(folder: File, base: str) -> list[str]:
    """Prompts to try: those that the adapter's card names as the Hub's widget does, or easy and hard ones."""
    if is_demo(base):
        return [khop.generate(1, seed=999 + hops, hops=[hops])[0]["question"] for hops in (1, 3, 5, 7)]
    card = folder / CARD
    if card.is_file():
        data: Any = ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
        listed = data.get("widget")
        texts = (
            [item["text"] for item in listed if isinstance(item, dict) and isinstance(item.get("text"), str)]
            if isinstance(listed, list)
            else []
        )
        if texts:
            return texts
    return list(_EXAMPLES)


class _Handlers:
    """What happens on a click. A visitor has one answer at a time: a newer request ends the older one."""

    def __init__(self, session: Session) -> None:
        self.session = session
        positions = getattr(session.model.config.get_text_config(), "max_position_embeddings", None)
        self.longest = max(1, min(512, (positions or 1024) // 2))
        # By visitor, the number of the latest request; None was told to stop.
        self._latest: dict[str, int | None] = {}
        self._count = 0

    def answer(
        self, prompt: str, wording: str, length: float, depth: float, price: float, budget: float,
        forced: dict[int, int], request: gr.Request,
    ) -> Iterator[Outputs]:  # fmt: skip
        """Drawing, answers and path, as they grow."""
        visitor = str(request.session_hash)
        self._count += 1
        mine = self._latest[visitor] = self._count
        if not prompt.strip():
            yield gr.skip(), "", None
            return
        time.sleep(_SETTLED)
        if self._latest.get(visitor) != mine:
            return
        ask = Ask(prompt, wording, int(length), depth, self._budget(budget), price, forced)
        blocks, drawn_at, drawn = self.session.num_blocks, 0.0, False
        try:
            for routed, base in self.session.side_by_side(ask):
                now, latest = time.perf_counter(), self._latest.get(visitor)
                if latest is not None and latest != mine:
                    return
                stopped = latest is None
                ended = routed.ended and base.ended
                if ended or stopped or now - drawn_at > _EVERY:
                    drawn_at, said = now, drawing.answers(routed, base, blocks, stopped=stopped and not ended)
                    if drawn or routed.path is None:
                        # The path stays as it is, and is drawn once: a hover or a focus on it is not disturbed.
                        yield gr.skip(), said, gr.skip()
                    else:
                        yield drawing.path(routed.path, forced), said, routed.path
                    drawn = True
                if stopped:
                    return
        except DrLLMError as problem:
            yield gr.skip(), drawing.error(str(problem)), gr.skip()

    def force(self, forced: dict[int, int], shown: Path | None, click: gr.EventData) -> dict[int, int]:
        """The clicked block's next decision; back at the router's own, it is the router's again."""
        block = int(click.block)
        chosen = EXECUTE if shown is None else shown.chosen[block]
        following = (forced.get(block, chosen) + 1) % 3
        rest = {other: decision for other, decision in forced.items() if other != block}
        return rest if following == chosen else {**rest, block: following}

    def many(
        self, lines: str, file: str | None, wording: str, depth: float, price: float, budget: float
    ) -> Iterator[str]:
        """The picture, as it grows."""
        try:
            prompts: list[Any] = [line for line in lines.splitlines() if line.strip()]
            if file is not None:
                asked = load_questions("jsonl", file, with_answers=False)
                prompts = [item.messages or item.prompt or item.question for item in asked]
            if not 1 <= len(prompts) <= MOST_PROMPTS:
                raise DrLLMError(
                    f"the picture must be of 1 to {MOST_PROMPTS} prompts, but {len(prompts)} were given; "
                    f"{'leave some out' if prompts else 'paste some, a line each, or choose a file'}."
                )
            found: list[tuple[str, Decisions]] = []
            drawn_at = 0.0
            for prompt in prompts:
                path = self.session.path(Ask(prompt, wording, 1, depth, self._budget(budget), price))
                text = prompt if isinstance(prompt, str) else prompt[-1][1]
                found.append((text, path.decisions))
                if time.perf_counter() - drawn_at > 0.5 or len(found) == len(prompts):
                    yield drawing.many(found)
                    drawn_at = time.perf_counter()
        except DrLLMError as problem:
            # By its name alone: where the server keeps what was sent to it is nobody's business.
            said = str(problem) if file is None else str(problem).replace(file, File(file).name)
            yield drawing.error(said)

    def stop(self, request: gr.Request) -> None:
        self._latest[str(request.session_hash)] = None

    def forget(self, request: gr.Request) -> None:
        """A visitor left."""
        self._latest.pop(str(request.session_hash), None)

    def _budget(self, slider: float) -> int | None:
        return None if slider >= 2 * self.session.num_blocks else int(slider)
