"""Image features of a split, float16, in Arrow files of the local cache.

A split is divided into files of `FILE_ROWS` images, `train-00000.arrow` and so on. Each is written
atomically by one process, so processes can share the work, and completed files survive a crash.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raymed.data.mapped import gather, map_batches, rows_of
from raymed.storage import atomic_path

FILE_ROWS = 64
"""Images per file, except the last; a file of VGG-19 features at 224 pixels takes 13 MiB."""


@dataclass(frozen=True)
class SplitFeatures:
    """The features of one split.

    Attributes:
        folder: Folder of the files.
        split: Name of the split.
        count: Number of images in the split.
        map_shape: Shape of a feature map, (D, h, w).
        width: Size of the hidden layer, F; None to keep feature maps only.
    """

    folder: Path
    split: str
    count: int
    map_shape: tuple[int, int, int]
    width: int | None

    @property
    def files(self) -> list[Path]:
        """All files of the split, in order, whether or not they exist."""
        numbers = range(-(-self.count // FILE_ROWS))
        return [self.folder / f"{self.split}-{number:05d}.arrow" for number in numbers]

    @property
    def row_bytes(self) -> int:
        """Bytes per image."""
        return 2 * sum(int(np.prod(shape)) for shape in self._shapes.values())

    def rows_of_file(self, number: int) -> np.ndarray:
        """Return the row numbers of the images in a file."""
        first = number * FILE_ROWS
        return np.arange(first, min(first + FILE_ROWS, self.count))

    def is_whole(self, number: int) -> bool:
        """Whether a file exists and is complete."""
        return self._map(number) is not None

    def write(self, number: int, chunks: Iterable[tuple[np.ndarray, ...]]) -> None:
        """Write a file.

        Args:
            number: Number of the file.
            chunks: Feature maps [n, D, h, w] and, with a `width`, hidden layers [n, F], in order.

        Raises:
            OSError: The file cannot be written.
        """
        path = self.files[number]
        # Left by a process that was killed while writing this file.
        for leftover in self.folder.glob(f".{path.name}.*.partial"):
            leftover.unlink(missing_ok=True)
        columns = [_column(np.concatenate(arrays)) for arrays in zip(*chunks, strict=True)]
        with atomic_path(path) as partial, pa.ipc.new_file(str(partial), self._schema) as writer:
            writer.write_batch(pa.record_batch(columns, schema=self._schema))

    def rows(self, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """Copy the features of some images out of mapped memory.

        Args:
            rows: Row numbers [n].

        Returns:
            Feature maps [n, D, h, w] and, with a `width`, hidden layers [n, F], float16.

        Raises:
            IndexError: A row number is out of range.
        """
        return tuple(gather(column, FILE_ROWS, rows) for column in self._mapped)

    @cached_property
    def _mapped(self) -> list[list[np.ndarray]]:
        batches: list[Any] = [self._map(number) for number in range(len(self.files))]
        assert None not in batches
        return [
            [rows_of(batch[name], shape, np.float16) for batch in batches]
            for name, shape in self._shapes.items()
        ]

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """An image's shape in each column."""
        hidden = {} if self.width is None else {"hidden": (self.width,)}
        return {"feature_map": self.map_shape, **hidden}

    @property
    def _schema(self) -> pa.Schema:
        return pa.schema(
            (name, pa.list_(pa.float16(), int(np.prod(shape))))
            for name, shape in self._shapes.items()
        )

    def _map(self, number: int) -> pa.RecordBatch | None:
        length = len(self.rows_of_file(number))
        batches = map_batches(self.files[number], self._schema, [length])
        return batches[0] if batches else None


def _column(values: np.ndarray) -> pa.FixedSizeListArray:
    flat = values.astype(np.float16, copy=False).reshape(len(values), -1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
