"""Cells of tables: what is missing, what names a thing, and which values a cell holds.

Every reader of a table goes through here, so that CSV, JSONL, Parquet and the sources' own files
agree. A cell that holds several values is a list (in JSONL and Parquet), or a text that is a list
as Python or JSON writes it (``['a', 'b']``), or values with ``;`` or ``|`` between them.
"""

import ast
import json
import math
import re
from typing import Any

import pyarrow.csv

MISSING = frozenset(
    {text.lower() for text in pyarrow.csv.ConvertOptions().null_values}
    | {"none", "<na>", "nat", "<nat>"}
)
"""Texts that stand for nothing, in lower case: those that Arrow and pandas take so, and pandas' own
spellings of it. A text with a full stop, such as ``None.``, is not among them."""

SEPARATORS = ";|"
"""What separates values in a cell, where no other separator is named."""

_WHOLE = re.compile(r"(-?\d+)\.0+")
_NO_COMMA = re.compile(r"""(?<=['"])\s+(?=['"])""")
_LABELS = {"true": 1, "yes": 1, "false": 0, "no": 0}


def text(value: Any) -> str:
    """Return a cell as text, stripped; "" where it is missing.

    A whole number has no decimals, whether it is stored as 12 or as 12.0; a list is a text of
    several paragraphs.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, list):
        return paragraphs(value)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    stripped = str(value).strip()
    return "" if stripped.lower() in MISSING else stripped


def paragraphs(values: list[Any]) -> str:
    """Return cells as one text in their order, a blank line (which ends a sentence) between."""
    return "\n\n".join(part for part in map(text, values) if part)


def identifier(value: Any) -> str:
    """Return a cell that names something, as `text`; a number's text ``12.0`` is ``12``."""
    name = text(value)
    whole = _WHOLE.fullmatch(name)
    return whole[1] if whole else name


def values(value: Any, separator: str | None = None) -> list[str]:
    """Return the values that a cell holds, without the missing ones, in their order.

    Args:
        separator: what separates values in a text; None: any of `SEPARATORS`.

    Raises:
        ValueError: the text begins and ends as a list does, and is none.
    """
    if not isinstance(value, list):
        cell = text(value)
        if cell.startswith("[") and cell.endswith("]"):
            value = _parsed(cell)
        elif separator is not None:
            value = cell.split(separator)
        else:
            value = re.split(f"[{SEPARATORS}]", cell)
    return [one for one in map(text, value) if one]


def _parsed(cell: str) -> list[Any]:
    try:
        return list(json.loads(cell))
    except ValueError:
        pass
    try:
        # NumPy writes its arrays without commas, which Python would read as one text.
        body = ast.parse(_NO_COMMA.sub(", ", cell), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        body = None
    items = body.elts if isinstance(body, ast.List) else [None]
    if not all(isinstance(item, ast.Constant | ast.Name) for item in items):
        raise ValueError(f"not a list as Python or JSON writes it: {cell[:80]}")
    return [item.value if isinstance(item, ast.Constant) else item.id for item in items]  # type: ignore[union-attr]


def label(value: Any) -> int | None:
    """Return 1, 0 or -1 (uncertain) where a cell is a label, None where it is anything else.

    A label is 1, 0 or -1, with or without decimals, or true, false, yes or no, in any case.
    """
    cell = "" if isinstance(value, list) else text(value).lower()
    if cell in _LABELS:
        return _LABELS[cell]
    try:
        number = float(cell)
    except ValueError:
        return None
    return int(number) if number in (-1, 0, 1) else None
