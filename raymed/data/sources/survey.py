"""A survey of a table: what its columns contain, from a single pass."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from raymed.data import cells
from raymed.data.sources.table_files import TableRow
from raymed.data.sources.table_parquet import StoredImage
from raymed.data.split import split_named
from raymed.data.views import view_of
from raymed.image_files import ENDINGS

SAMPLE = 1000
"""Rows in which every column is inspected; later rows are inspected only where requested."""
_DISTINCT = 20
_LONGEST = 300
"""Characters kept of a value, for display."""


@dataclass
class Column:
    """Counts of a column's cells. Missing cells are not counted."""

    name: str
    filled: int = 0
    labels: int = 0
    """Cells that hold a label (see `raymed.data.cells.label`)."""
    commas: int = 0
    """Cells with a comma that are neither lists nor contain a separator."""
    divided: int = 0
    """Cells that are lists or contain a separator."""
    files: int = 0
    """Cells whose first value ends in the extension of an image file."""
    stored: int = 0
    """Cells with images that are stored in the table."""
    words: int = 0
    values: dict[str, int] = field(default_factory=dict)
    """The first distinct values, truncated -> the row of the first occurrence; those in a list one
    by one."""
    first_other: tuple[str, int] | None = None
    """The first value that is not a label, and its row."""

    def add(self, number: int, value: Any) -> None:
        """Count one cell."""
        items = cells.listed(value)
        if items and isinstance(items[0], StoredImage):
            self.filled += 1
            self.stored += 1
            self._add_values([item.path for item in items if item.path], number)
            return
        cell = cells.text(value)
        if not cell:
            return
        self.filled += 1
        if cells.label(value) is not None:
            self.labels += 1
        elif self.first_other is None:
            self.first_other = (cell[:_LONGEST], number)
        if isinstance(value, list) or cell[0] == "[" or any(s in cell for s in cells.SEPARATORS):
            self.divided += 1
        elif "," in cell:
            self.commas += 1
        self.files += bool(items) and cells.text(items[0]).lower().endswith(ENDINGS)
        self.words += len(cell.split())
        self._add_values(map(cells.text, items), number)

    def _add_values(self, values: Iterable[str], number: int) -> None:
        for value in values:
            if len(self.values) <= _DISTINCT:
                self.values.setdefault(value[:_LONGEST], number)

    @property
    def is_label(self) -> bool:
        """Whether every cell is a label or missing."""
        return 0 < self.filled == self.labels

    @property
    def seems_undivided(self) -> bool:
        """Whether at least one in ten cells has commas, and no cell is divided in another way."""
        return 10 * self.commas >= self.filled > 0 and not self.divided

    @property
    def is_split(self) -> bool:
        """Whether all values are split names, and there are several."""
        names = {split_named(value) for value in self.values}
        return None not in names and len(names) > 1

    @property
    def is_view(self) -> bool:
        """Whether all values are known views."""
        return bool(self.values) and all(view_of(value) for value in self.values)


def survey(rows: Iterable[TableRow], in_full: Callable[[str], bool]) -> dict[str, Column]:
    """Read a table to its end and return its columns by name, in order of appearance.

    Args:
        in_full: Whether to inspect a column, given its name, in all rows and not just in the first
            `SAMPLE`.
    """
    columns: dict[str, Column] = {}
    inspected_in_full: list[Column] = []
    for number, row in enumerate(rows, start=1):
        for name in row:
            if name not in columns:
                columns[name] = Column(name)
                if in_full(name):
                    inspected_in_full.append(columns[name])
        for column in columns.values() if number <= SAMPLE else inspected_in_full:
            column.add(number, row.get(column.name))
    return columns
