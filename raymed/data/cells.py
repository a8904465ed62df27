"""Interpreting the cells of tables: missing cells, identifiers, labels and lists of values.

All readers of tables use these functions, so that CSV, JSONL, Parquet and the files of the sources
are read alike. A cell with several values is a list (in JSONL and Parquet), text that is a Python
or JSON list (``['a', 'b']``), or text with values separated by ``;`` or ``|``.
"""

import ast
import json
import math
import re
from contextlib import suppress
from typing import Any

import pyarrow.csv

MISSING = frozenset(
    {text.lower() for text in pyarrow.csv.ConvertOptions().null_values}
    | {"none", "<na>", "nat", "<nat>"}
)
"""Texts that mark a missing cell, in lower case: the null values of Arrow and pandas, and how
pandas writes them. Text with a full stop, such as ``None.``, is not missing."""

SEPARATORS = ";|"
"""The default separators of values in a cell."""

_WHOLE = re.compile(r"(-?\d+)\.0+")
_NO_COMMA = re.compile(r"""(?<=['"])\s+(?=['"])""")
_LABELS = {"true": 1, "yes": 1, "false": 0, "no": 0}


def text(value: Any) -> str:
    """Return a cell as stripped text, "" if it is missing.

    Whole numbers have no decimals, whether stored as 12 or 12.0. A list becomes a text of several
    paragraphs.
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
    """Join cells in order, separated by blank lines, which end sentences."""
    return "\n\n".join(part for part in map(text, values) if part)


def identifier(value: Any) -> str:
    """Return a cell as an identifier: like `text`, but the text ``12.0`` is ``12``."""
    name = text(value)
    whole = _WHOLE.fullmatch(name)
    return whole[1] if whole else name


def values(value: Any, separator: str | None = None) -> list[str]:
    """Return the values in a cell, in order, without missing ones.

    Args:
        value: The cell.
        separator: Separator of the values in text; None: any of `SEPARATORS`.

    Raises:
        ValueError: The text begins and ends like a list but is not one.
    """
    if not isinstance(value, list):
        cell = text(value)
        if cell.startswith("[") and cell.endswith("]"):
            value = _parse_list(cell)
        elif separator is not None:
            value = cell.split(separator)
        else:
            value = re.split(f"[{SEPARATORS}]", cell)
    return [each for each in map(text, value) if each]


def listed(value: Any) -> list[Any]:
    """Return the items of a cell that is a list or text of a list, without missing ones.

    Any other cell is the only item, since a file name may contain separators.
    """
    if isinstance(value, str) and value.strip().startswith("[") and value.strip().endswith("]"):
        with suppress(ValueError):
            value = _parse_list(value.strip())
    items = value if isinstance(value, list) else [value]
    return [item for item in items if text(item)]


def _parse_list(cell: str) -> list[Any]:
    try:
        return list(json.loads(cell))
    except ValueError:
        pass
    try:
        # NumPy prints arrays without commas, which Python would read as one string.
        body = ast.parse(_NO_COMMA.sub(", ", cell), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        body = None
    items = body.elts if isinstance(body, ast.List) else [None]
    if not all(isinstance(item, ast.Constant | ast.Name) for item in items):
        raise ValueError(f"not a Python or JSON list: {cell[:80]}")
    return [item.value if isinstance(item, ast.Constant) else item.id for item in items]  # type: ignore[union-attr]


def label(value: Any) -> int | None:
    """Return 1, 0 or -1 (uncertain) if a cell is a label, else None.

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
