"""Which columns of a table hold the image, the report and so on."""

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field

from raymed.data.sources.labels import LabelSettings
from raymed.errors import UsageError

FieldName = Literal["image", "report", "tags", "study", "split", "view"]
FIELDS: tuple[str, ...] = get_args(FieldName)
Columns = Mapping[Any, str | Sequence[str]]
"""Field -> its column or columns."""

_SEVERAL = ("image", "report", "tags")
"""Fields that may have several columns."""


class TableSettings(LabelSettings):
    """Settings of ``raymed prepare table``."""

    columns: dict[FieldName, str | tuple[str, ...]] = Field(default={})
    """Columns whose names differ from image, report, tags, study, split and view, such as
    columns.image=NAME. Join several image, report (in the order given) or tag columns by commas:
    columns.report=findings,impression. If a name contains a comma, give a list:
    columns.tags=["Edema, mild", Mass]. Every image of a row, in several columns or as a list in
    one, is an example of the row's study. A tag column in which every cell is 1, 0, -1 (or true,
    false) or empty holds labels: where the label is 1, the name of the column is a tag."""
    tag_separator: str | None = None
    """Separator of the tags in a cell, such as a comma; by default a semicolon or |. A cell that
    is a list, such as ['mass', 'edema'], is always read as a list."""


def check_fields(columns: Columns) -> None:
    """Raise UsageError if a key is not one of `FIELDS`."""
    for field in columns:
        if field not in FIELDS:
            raise UsageError(
                f"columns: there is no field {field!r}{_did_you_mean(field, FIELDS)}; the fields "
                f"are {', '.join(FIELDS)}"
            )


def _column_list(named: str | Sequence[str]) -> list[str]:
    """Split a setting into column names, assuming that no name contains a comma."""
    return [name.strip() for name in named.split(",")] if isinstance(named, str) else list(named)


def read_in_full(columns: Columns) -> Callable[[str], bool]:
    """Return whether every cell of a column matters: it may hold tags or the split."""
    names = set()
    for field in ("tags", "split"):
        named = columns.get(field, field)
        names |= {*_column_list(named), *([named] if isinstance(named, str) else [])}
    return lambda name: name in names or name.strip().lower() in ("tags", "split")


def chosen_columns(
    path: Path,
    available: Sequence[str],
    columns: Columns,
    needed: Collection[str],
) -> dict[str, list[str]]:
    """Return field -> its columns in a table, for the fields that the table has.

    Args:
        available: All columns of the table.
        columns: Field -> the column or columns that the user names.
        needed: Fields that must exist.

    Raises:
        UsageError: A column does not exist, is ambiguous, or a field has too many.
    """
    fields: dict[str, list[str]] = {}
    for field in FIELDS:
        named = columns.get(field)
        if named is None:
            alike = [name for name in available if name.strip().lower() == field]
            names = [field] if field in available else alike
            if len(names) > 1:
                raise UsageError(
                    f"{path}: the columns {' and '.join(map(repr, names))} could both be the "
                    f"field {field}: choose one with columns.{field}=..."
                )
            if not names and field not in needed:
                continue
            names = names or [field]
        else:
            names = (
                [named] if isinstance(named, str) and named in available else _column_list(named)
            )
        if not names or (len(names) > 1 and field not in _SEVERAL):
            raise UsageError(f"columns: field {field} takes one column, found {names}")
        for name in names:
            if name not in available:
                raise UsageError(
                    f"{path}: no column {name!r} for field {field}"
                    f"{_did_you_mean(name, available)}; the columns are {', '.join(available)}. "
                    f"`raymed prepare table {path}`, without out=, proposes which to use"
                )
        fields[field] = names
    return fields


def _did_you_mean(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
