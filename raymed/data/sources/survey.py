"""What the columns of a table hold, found by reading it once."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from raymed.data import cells
from raymed.data.sources.image_folder import SUFFIXES
from raymed.data.sources.table_files import Row
from raymed.data.split import side_of
from raymed.data.views import view_of

SAMPLE = 1000
"""Rows of which every column is looked at; only those that are asked for are in all rows."""
_DISTINCT = 20
_LONGEST = 300
"""Characters of a value that are kept to be shown."""


@dataclass
class Column:
    """What was seen of a column; missing cells count in none of these."""

    name: str
    filled: int = 0
    labels: int = 0
    """Cells that hold 1, 0 or -1, true or false (`raymed.data.cells.label`)."""
    commas: int = 0
    """Cells with a comma that no list and no separator divides."""
    divided: int = 0
    """Cells that are lists, or hold a separator."""
    files: int = 0
    """Cells that end as an image file does."""
    words: int = 0
    values: dict[str, int] = field(default_factory=dict)
    """The first different values, the start of each, and the row where it was first."""
    unlike: tuple[str, int] | None = None
    """The first value that is no label, and its row."""

    def see(self, number: int, value: Any) -> None:
        """Count one cell."""
        cell = cells.text(value)
        if not cell:
            return
        self.filled += 1
        if cells.label(value) is not None:
            self.labels += 1
        elif self.unlike is None:
            self.unlike = (cell[:_LONGEST], number)
        if isinstance(value, list) or cell[0] == "[" or any(s in cell for s in cells.SEPARATORS):
            self.divided += 1
        elif "," in cell:
            self.commas += 1
        self.files += cell.lower().endswith(SUFFIXES)
        self.words += len(cell.split())
        if len(self.values) <= _DISTINCT:
            self.values.setdefault(cell[:_LONGEST], number)

    @property
    def is_label(self) -> bool:
        """Whether every cell is a label or missing."""
        return 0 < self.filled == self.labels

    @property
    def seems_undivided(self) -> bool:
        """Whether one cell in ten or more has commas, and none has what else separates values."""
        return 10 * self.commas >= self.filled > 0 and not self.divided

    @property
    def is_split(self) -> bool:
        """Whether every cell names a split or is missing, and several are named."""
        sides = {side_of(value) for value in self.values}
        return None not in sides and len(sides) > 1

    @property
    def is_view(self) -> bool:
        """Whether every cell names a view that is known, or is missing."""
        return bool(self.values) and all(view_of(value) for value in self.values)


def survey(rows: Iterable[Row], whole: Callable[[str], bool]) -> dict[str, Column]:
    """Read a table through and return its columns by name, in the order that they appear.

    Args:
        whole: whether the column of a name is to be looked at in every row, not in the first
            `SAMPLE` alone.
    """
    columns: dict[str, Column] = {}
    asked: list[Column] = []
    for number, row in enumerate(rows, start=1):
        for name in row:
            if name not in columns:
                columns[name] = Column(name)
                if whole(name):
                    asked.append(columns[name])
        for column in columns.values() if number <= SAMPLE else asked:
            column.see(number, row.get(column.name))
    return columns
