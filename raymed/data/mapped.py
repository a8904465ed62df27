"""Memory-mapped Arrow files of the local cache: columns and fixed-size rows."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import pyarrow as pa

T = TypeVar("T", covariant=True)
Other = TypeVar("Other")


class _Rows(Sequence[T]):
    """A sequence that resolves slices and negative indices to single rows."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = index + len(self) if index < 0 else index
        if not 0 <= row < len(self):
            raise IndexError(f"row numbers must be from 0 to {len(self) - 1}, got {index}")
        return self._entry(row)

    @abstractmethod
    def _entry(self, row: int) -> T:
        """The entry of a row from 0 to ``len(self) - 1``."""


class Column(_Rows[T]):
    """A column of a memory-mapped file as a sequence. Entries are decoded at each access.

    Args:
        blocks: The column's arrays, one per record batch.
        block_rows: Number of entries in every block but the last, which may have fewer.
        decode: Converts the Python value of an entry.
    """

    def __init__(
        self, blocks: Sequence[pa.Array], block_rows: int, decode: Callable[[Any], T]
    ) -> None:
        self._blocks = blocks
        self._block_rows = block_rows
        self._decode = decode

    def __len__(self) -> int:
        return (len(self._blocks) - 1) * self._block_rows + len(self._blocks[-1])

    def _entry(self, row: int) -> T:
        return self._decode(self._blocks[row // self._block_rows][row % self._block_rows].as_py())

    def __iter__(self) -> Iterator[T]:
        for block in self._blocks:
            yield from map(self._decode, block.to_pylist())

    def map(self, function: Callable[[T], Other]) -> "Column[Other]":
        """Return a column that applies a function to each entry at each access."""
        decode = self._decode
        return Column(self._blocks, self._block_rows, lambda value: function(decode(value)))


class Computed(_Rows[T]):
    """A sequence whose entries are computed at each access.

    Args:
        count: Its length.
        compute: Computes the entry of a row from 0 to ``count - 1``.
    """

    def __init__(self, count: int, compute: Callable[[int], T]) -> None:
        self._count = count
        self._compute = compute

    def __len__(self) -> int:
        return self._count

    def _entry(self, row: int) -> T:
        return self._compute(row)

    def map(self, function: Callable[[T], Other]) -> "Computed[Other]":
        """Return a sequence that applies a function to each entry at each access."""
        return Computed(self._count, lambda row: function(self._compute(row)))


def map_batches(
    path: Path, schema: pa.Schema, lengths: Sequence[int]
) -> list[pa.RecordBatch] | None:
    """Map an Arrow file; None unless it is complete, with record batches of these lengths."""
    try:
        # Closing releases the file descriptor; the mapping stays valid.
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
    except (OSError, pa.ArrowInvalid):
        return None
    fits = reader.schema == schema and [len(batch) for batch in batches] == list(lengths)
    return batches if fits else None


def rows_of(column: pa.Array, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """View a mapped column of fixed-size rows as an array [rows, *shape], without copying."""
    return np.frombuffer(column.buffers()[-1], dtype, len(column) * int(np.prod(shape))).reshape(
        -1, *shape
    )


def gather(blocks: Sequence[np.ndarray], block_rows: int, rows: np.ndarray) -> np.ndarray:
    """Copy rows out of blocks of ``block_rows`` rows, of which the last may have fewer.

    Args:
        blocks: Arrays [block_rows, ...].
        block_rows: Rows per block.
        rows: Row numbers [n].

    Returns:
        Array [n, ...].

    Raises:
        IndexError: A row number is out of range.
    """
    rows = np.asarray(rows)
    count = (len(blocks) - 1) * block_rows + len(blocks[-1])
    if rows.size and not 0 <= rows.min() <= rows.max() < count:
        raise IndexError(f"row numbers must be from 0 to {count - 1}")
    gathered = np.empty((len(rows), *blocks[0].shape[1:]), blocks[0].dtype)
    for index, row in enumerate(rows):
        gathered[index] = blocks[row // block_rows][row % block_rows]
    return gathered
