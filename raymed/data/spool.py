"""The rows of a dataset in the making: names in memory, texts in a temporary file."""

import json
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Rows:
    """Rows without their pixels, in the order of the source; all are added before one is read."""

    def __init__(self, folder: Path | None) -> None:
        """Keep the texts in a nameless file in ``folder``, or where the system keeps such files."""
        self.image_ids: list[str] = []
        self.studies: list[str] = []
        self.given: list[str | None] = []
        """The split that the source names."""
        self._ends = array("Q", [0])
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by close())

    def __len__(self) -> int:
        return len(self.image_ids)

    def add(self, row: dict[str, Any], given: str | None) -> None:
        """Add a row; OSError if the disk is full."""
        text = json.dumps(row).encode()
        self._file.write(text)
        self._ends.append(self._ends[-1] + len(text))
        self.image_ids.append(row["image_id"])
        self.studies.append(row["study"])
        self.given.append(given)

    def text(self, index: int) -> bytes:
        """A row as JSON, the same bytes in every run."""
        self._file.seek(self._ends[index])
        return self._file.read(self._ends[index + 1] - self._ends[index])

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = json.loads(self.text(index))
        return row

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def close(self) -> None:
        """Give the disk's space back."""
        self._file.close()
