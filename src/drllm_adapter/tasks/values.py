"""One reading of what JSON, CSV, pandas, NumPy and the Hub make of the same text, number or list."""

import ast
import io
import json
import math
import re
import tokenize
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from ..errors import DrLLMError


def plain(value: Any) -> Any:
    """The value in the types of JSON: arrays as lists, NumPy's numbers as Python's; None for NaN, NaT, `pandas.NA`."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if hasattr(value, "tolist"):  # NumPy's arrays and numbers, without importing it
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Decimal):
        value = int(value) if value == value.to_integral_value() else float(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, (str, bool, int, float)):
        return value
    return None if str(value) in ("NaT", "<NA>") else str(value)


def text_of(value: Any) -> str | None:
    """A text, or a number as people write it (72.0 is "72"); None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return str(int(value)) if isinstance(value, int) or (value.is_integer() and abs(value) < 2**53) else repr(value)


def whole_number(value: Any) -> int | None:
    """The whole number that a value is or says: 3, 3.0, "3" and "3.0"; None for anything else."""
    text = text_of(value)
    found = None if text is None else re.fullmatch(r"\s*([+-]?\d+)(?:\.0+)?\s*", text)
    return None if found is None else int(found[1])


def nested(text: str) -> Any:
    """What a list or a mapping says that became text on its way through CSV: JSON, Python's or NumPy's notation.

    Raises:
        ValueError: it is none of these.
    """
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        # NumPy prints no commas between the items of an array, and Python would join neighbouring texts to one.
        tokens: list[tuple[int, str]] = []
        for token in tokenize.generate_tokens(io.StringIO(f"({text.strip()})").readline):
            values = (tokenize.STRING, tokenize.NUMBER)
            if tokens and tokens[-1][0] in values and token.type in values:
                tokens.append((tokenize.OP, ","))
            if token.type not in (tokenize.NL, tokenize.NEWLINE):
                tokens.append((token.type, token.string))
        tree = _WithoutCalls().visit(ast.parse(tokenize.untokenize(tokens).strip(), mode="eval"))
        return plain(ast.literal_eval(tree))
    except (SyntaxError, tokenize.TokenError, ValueError, IndexError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text[:40]!r} is no list and no mapping") from error


class _WithoutCalls(ast.NodeTransformer):
    """`array([...], dtype=object)` as the list in it, and `nan` as nothing."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        return self.visit(node.args[0]) if isinstance(node.func, ast.Name) and node.func.id == "array" else node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(None) if node.id in ("nan", "null") else node


def without_surrogates(text: str, where: str) -> str:
    """The text, if it can be encoded.

    Raises:
        DrLLMError: it holds half a character, as where an emoji was cut; `where` is what the sentence names.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DrLLMError(
            f"{where} must be text that can be encoded, but character {error.start + 1} of {text[:40]!a} is half a "
            f"character (a lone surrogate, as of an emoji that was cut); correct that text."
        ) from None
    return text
