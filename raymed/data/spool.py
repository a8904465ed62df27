"""The rows of a dataset while it is prepared: ids in memory, texts in a temporary file."""

import json
import tempfile
from array import array
from pathlib import Path
from typing import Any, Protocol

from raymed.storage import AnyPath


class Rows(Protocol):
    """Rows of a dataset without their pixels, by number."""

    def __getitem__(self, row: int) -> dict[str, Any]: ...

    def text(self, row: int) -> bytes:
        """Return a row as JSON; the bytes are the same in every run."""
        ...


class SpooledRows:
    """Rows without their pixels, in the order of the source.

    All rows must be added before the first one is read.

    Args:
        folder: Folder of the unnamed temporary file; the system's default if it is remote.
    """

    def __init__(self, folder: AnyPath) -> None:
        self.image_ids: list[str] = []
        self.studies: list[str] = []
        self.given_splits: list[str | None] = []
        """The split that the source names for each row, if it does."""
        self._ends = array("Q", [0])
        self._file = tempfile.TemporaryFile(dir=folder if isinstance(folder, Path) else None)  # noqa: SIM115 (closed by close())

    def __len__(self) -> int:
        return len(self.image_ids)

    def add(self, row: dict[str, Any], given_split: str | None) -> None:
        """Add a row; OSError if the disk is full."""
        text = json.dumps(row).encode()
        self._file.write(text)
        self._ends.append(self._ends[-1] + len(text))
        self.image_ids.append(row["image_id"])
        self.studies.append(row["study"])
        self.given_splits.append(given_split)

    def text(self, row: int) -> bytes:
        """Return a row as JSON; the bytes are the same in every run."""
        self._file.seek(self._ends[row])
        return self._file.read(self._ends[row + 1] - self._ends[row])

    def __getitem__(self, row: int) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.text(row))
        return content

    def ids(self, row: int) -> tuple[str, str]:
        """Return the ids of a row's image and study."""
        return self.image_ids[row], self.studies[row]

    def close(self) -> None:
        """Delete the temporary file."""
        self._file.close()
