"""HTML for the page: a path block by block, two answers side by side, many paths as one picture, an evaluation.

What people typed and what a model answered is escaped. The colours are the page's: see `STYLE`.
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path as File

from ..decisions import CLASS_NAMES, SKIP, Decisions, passes
from ..hub.reports import Evaluation
from .session import Answer, Path, Probabilities

_DONE = ("skipped", "run", "repeated")
_ROW, _LABEL, _WIDEST = 20, 300, 420
"""Pixels of the picture of many paths: height of a row, width of a prompt, of all blocks."""

STYLE = """
.drllm { --skip: #b8bcc4; --run: #6f8fb3; --repeat: #00b37a; --ink: #1f2937; --soft: #6b7280; --line: #d9dde3;
  --card: #ffffff; color: var(--ink); font-size: 15px; }
.dark .drllm { --skip: #4b5563; --run: #54759b; --repeat: #1fd79b; --ink: #e5e7eb; --soft: #9ca3af; --line: #374151;
  --card: #1f2430; }
#path { position: relative; z-index: 30; overflow: visible; }
.drllm h2 { font-size: 22px; margin: 0; font-weight: 650; }
.drllm p { margin: 4px 0; }
.drllm .soft { color: var(--soft); }
.drllm .blocks { display: flex; flex-wrap: wrap; gap: 6px; margin: 10px 0 6px; }
.drllm .block { position: relative; width: 46px; height: 58px; border-radius: 8px; border: 2px solid transparent;
  color: #fff; background: var(--run); font-weight: 600; font-size: 15px; line-height: 1; cursor: pointer;
  padding: 0; overflow: visible; }
.drllm .block:focus-visible { outline: 3px solid #f59e0b; outline-offset: 2px; }
.drllm .block small { display: block; font-size: 11px; font-weight: 500; margin-top: 5px; opacity: .9; }
.drllm .block.skip { background: transparent; border: 2px dashed var(--skip); color: var(--soft); }
.drllm .block.repeat { background: var(--repeat); color: #06281d;
  box-shadow: 4px -4px 0 -1px color-mix(in srgb, var(--repeat) 45%, transparent); }
.drllm .block.forced::after { content: ""; position: absolute; inset: -6px; border: 2px solid #f59e0b;
  border-radius: 12px; pointer-events: none; }
.drllm .tip { display: none; position: absolute; z-index: 20; top: 66px; left: 50%; transform: translateX(-50%);
  width: 192px; padding: 10px; border-radius: 8px; text-align: left; font-weight: 400;
  font-size: 12px; line-height: 1.6; color: var(--ink);
  background: var(--card); border: 1px solid var(--line); box-shadow: 0 6px 20px #0003; pointer-events: none; }
.drllm .block:nth-child(-n+2) .tip { left: 0; transform: none; }
.drllm .block:hover .tip, .drllm .block:focus-visible .tip { display: block; }
.drllm .tip b { display: inline-block; width: 54px; font-weight: 500; }
.drllm .tip i { display: inline-block; height: 8px; border-radius: 2px; background: var(--soft); margin-right: 5px; }
.drllm .legend span { margin-right: 16px; white-space: nowrap; }
.drllm .legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px;
  vertical-align: -1px; background: var(--run); box-sizing: border-box; }
.drllm .legend .skip { background: none; border: 2px dashed var(--skip); }
.drllm .legend .repeat { background: var(--repeat); }
.drllm .legend .forced { background: none; border: 2px solid #f59e0b; }
.drllm .cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 290px), 1fr)); gap: 14px; }
.drllm .card { border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; background: var(--card); }
.drllm .card h3 { margin: 0 0 8px; font-size: 14px; font-weight: 600; color: var(--soft); }
/* Upside down, so that a box that is full shows the end of its text while it grows. */
.drllm .card .text { min-height: 56px; max-height: 320px; overflow-y: auto; white-space: pre-wrap; display: flex;
  flex-direction: column-reverse; overflow-wrap: anywhere; font-size: 16px; line-height: 1.5; }
.drllm .card .text div { margin-bottom: auto !important; }
.drllm .scroll { overflow-x: auto; }
.drllm table { border-collapse: collapse; width: 100%; margin: 12px 0; }
.drllm table, .drllm tr, .drllm th, .drllm td { border: 0 !important; }
.drllm th, .drllm td { padding: 6px 12px; text-align: right; box-shadow: 0 1px 0 var(--line);
  font-variant-numeric: tabular-nums; }
.drllm th:first-child, .drllm td:first-child { text-align: left; }
.drllm th { color: var(--soft); font-weight: 600; }
.drllm .error { border-left: 4px solid #dc2626; padding: 8px 14px; background: #dc26261a; border-radius: 4px; }
.drllm svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
.drllm svg .soft { fill: var(--soft); }
.drllm svg .execute { fill: var(--run); }
.drllm svg .repeat { fill: var(--repeat); }
.drllm svg .skip { fill: none; stroke: var(--skip); stroke-dasharray: 3 2; }
.drllm img { max-width: 100%; border-radius: 8px; background: #fff; margin-top: 10px; }
"""


def framed(content: str) -> str:
    """What carries the page's style."""
    return f'<div class="drllm">{content}</div>'


def title(name: str, about: str) -> str:
    return framed(f'<h2>{_safe(name)}</h2><p class="soft">{_safe(about)}</p>')


def note(sentence: str) -> str:
    return framed(f'<p class="soft">{_safe(sentence)}</p>')


def error(sentence: str) -> str:
    return framed(f'<p class="error" role="alert">{_safe(sentence)}</p>')


def path(shown: Path, forced: Mapping[int, int]) -> str:
    """The blocks in their order, a button each: `data-block` is its index, a hover or focus shows its router."""
    blocks = "".join(
        _block(index, decision, shown.probabilities[index], shown.chosen[index], index in forced)
        for index, decision in enumerate(shown.decisions)
    )
    base = len(shown.decisions)
    legend = "".join(
        f'<span><i class="{name}"></i>{text}</span>'
        for name, text in zip((*CLASS_NAMES, "forced"), (*_DONE, "forced by you"), strict=True)
    )
    return framed(
        f'<strong>{passes(shown.decisions)} block passes</strong> <span class="soft">base model: {base}</span>'
        f'<div class="blocks">{blocks}</div><div class="legend soft">{legend}</div>'
    )


def _block(index: int, decision: int, probabilities: Probabilities | None, chosen: int, forced: bool) -> str:
    said = f"forced; the router chose {CLASS_NAMES[chosen]}" if forced else "the router's choice"
    if probabilities is None:
        said = "forced" if forced else "no router"
    bars = "".join(
        f'<br><b>{name}</b><i style="width:{round(60 * share)}px"></i>{share:.0%}'
        for name, share in zip(CLASS_NAMES, probabilities or (), strict=False)
    )
    mark = ("skip", "", "×2")[decision]
    classes = f"block {CLASS_NAMES[decision]}{' forced' if forced else ''}"
    return (
        f'<button type="button" class="{classes}" data-block="{index}" '
        f'aria-label="Block {index}, {_DONE[decision]}, {said}. Changes it.">'
        f'{index}<small>{mark or "&nbsp;"}</small><span class="tip">block {index}: {said}{bars}</span></button>'
    )


def answers(routed: Answer, base: Answer, blocks: int, *, stopped: bool = False) -> str:
    """Two answers side by side, and what they took."""
    cards = "".join(
        f'<div class="card"><h3>{name}</h3><div class="text" tabindex="0"><div>{_safe(answer.text)}'
        f"{'' if answer.ended or stopped else ' ▌'}</div></div></div>"
        for name, answer in (("Routed", routed), ("Base model", base))
    )
    same = "Stopped." if stopped else ""
    if routed.ended and base.ended:
        same = "The answers are the same." if routed.text == base.text else "The answers differ."
    taken = passes(routed.path.decisions) if routed.path else blocks
    rows = [
        ("block passes a token", f"{taken}", f"{blocks}", _ratio(taken, blocks)),
        ("prompt to first token", _seconds(routed.prefill), _seconds(base.prefill),
         _ratio(routed.prefill, base.prefill)),
        ("a token after it", _each(routed), _each(base), _ratio(routed.decode / max(1, routed.tokens - 1),
                                                                base.decode / max(1, base.tokens - 1))),
        ("tokens a second", _speed(routed), _speed(base), _ratio(routed.tokens_per_second, base.tokens_per_second)),
        ("tokens", f"{routed.tokens}", f"{base.tokens}", ""),
        ("keys and values", _bytes(routed.cache_bytes), _bytes(base.cache_bytes),
         _ratio(routed.cache_bytes, base.cache_bytes) if routed.tokens == base.tokens else ""),
    ]  # fmt: skip
    table = _table(("", "routed", "base", "ratio"), rows)
    return framed(f'<div class="cards" aria-live="polite">{cards}</div><p class="soft">{same}&nbsp;</p>{table}')


def many(found: Sequence[tuple[str, Decisions]]) -> str:
    """Paths of many prompts under each other, those of the fewest passes first."""
    ordered = sorted(found, key=lambda item: passes(item[1]))
    blocks = len(ordered[0][1])
    cell = max(10, min(30, _WIDEST // blocks))
    width, height = _LABEL + blocks * cell + 50, 26 + len(ordered) * _ROW
    parts = [
        f'<text x="{_LABEL + index * cell + cell / 2:g}" y="14" text-anchor="middle" class="soft">{index}</text>'
        for index in range(0, blocks, 1 if blocks <= 12 else 5)
    ]
    for row, (prompt, decisions) in enumerate(ordered):
        top = 22 + row * _ROW
        label = prompt if len(prompt) <= 42 else f"{prompt[:22]} … {prompt[-17:]}"
        parts.append(f'<g><title>{_safe(prompt)}</title><text x="0" y="{top + 13}">{_safe(label)}</text>')
        for index, decision in enumerate(decisions):
            inset = 3 if decision == SKIP else 1
            parts.append(
                f'<rect x="{_LABEL + index * cell + inset}" y="{top + inset}" width="{cell - 2 * inset}" '
                f'height="{_ROW - 2 * inset - 1}" rx="2" class="{CLASS_NAMES[decision]}"/>'
            )
        parts.append(f'<text x="{_LABEL + blocks * cell + 10}" y="{top + 13}">{passes(decisions)}</text></g>')
    mean = sum(passes(decisions) for _, decisions in found) / len(found)
    kinds = len({decisions for _, decisions in found})
    return framed(
        f"<strong>{len(found)} prompts, {kinds} paths, {mean:.2f} of {blocks} block passes on average</strong>"
        f'<div class="scroll" tabindex="0"><svg role="img" aria-label="Paths of {len(found)} prompts by passes" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">{"".join(parts)}</svg></div>'
    )


def evaluation(measured: Evaluation, folder: File) -> str:
    """What `drllm eval` wrote into the adapter's folder: its results and its figures."""
    rows = []
    for result in measured.results:
        difference = f"{result.routed - result.base:+.3f}{_interval(result.difference_interval)}"
        rows.append((result.questions, result.metric, f"{result.count}", f"{result.base:.3f}",
                     f"{result.routed:.3f}{_interval(result.routed_interval)}", difference,
                     f"{measured.mean_passes:.2f} of {measured.num_blocks}"))  # fmt: skip
    head = ("questions", "metric", "n", "base", "routed", "difference", "block passes")
    figures = "".join(
        f'<img alt="{_safe(file.stem)}" src="data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}">'
        for file in sorted((folder / measured.name).glob("*.png"))
    )
    said = f'<p class="error">{_safe(measured.trained_on)}</p>' if measured.trained_on else ""
    return framed(
        f"<h2>{_safe(measured.name)}</h2>"
        f'<p class="soft">{_safe(measured.settings)}; intervals are of 95 %</p>{said}{_table(head, rows)}{figures}'
    )


def _safe(text: str) -> str:
    """Escaped for HTML, and braces too: gradio reads its values as templates."""
    return escape(text).replace("{", "&#123;").replace("}", "&#125;").replace("$", "&#36;")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{_safe(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{_safe(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _interval(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f" [{bounds[0]:.3f}, {bounds[1]:.3f}]"


def _ratio(routed: float | None, base: float | None) -> str:
    return f"{routed / base:.2f}" if routed and base else ""


def _seconds(value: float) -> str:
    return f"{1000 * value:.1f} ms" if value < 1 else f"{value:.2f} s"


def _each(answer: Answer) -> str:
    return _seconds(answer.decode / (answer.tokens - 1)) if answer.tokens > 1 else "–"


def _speed(answer: Answer) -> str:
    return f"{answer.tokens_per_second:.1f}" if answer.tokens_per_second else "–"


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
