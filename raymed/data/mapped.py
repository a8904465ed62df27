"""Rows of a fixed size in Arrow files of the local cache, mapped into memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa


def map_batches(
    path: Path, schema: pa.Schema, lengths: Sequence[int]
) -> list[pa.RecordBatch] | None:
    """Map an Arrow file; None unless it is whole and has record batches of these lengths."""
    try:
        # Closing gives the file descriptor back; what was mapped stays.
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
    except (OSError, pa.ArrowInvalid):
        return None
    fits = reader.schema == schema and [len(batch) for batch in batches] == list(lengths)
    return batches if fits else None


def rows_of(column: pa.Array, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A mapped column of fixed-size rows as an array [rows, *shape]; nothing is copied."""
    return np.frombuffer(column.buffers()[-1], dtype, len(column) * int(np.prod(shape))).reshape(
        -1, *shape
    )


def gather(blocks: Sequence[np.ndarray], block_rows: int, rows: np.ndarray) -> np.ndarray:
    """Copy rows out of blocks that each hold ``block_rows``, the last one perhaps fewer.

    Raises:
        IndexError: a row number is out of range.
    """
    rows = np.asarray(rows)
    count = sum(map(len, blocks))
    if rows.size and not 0 <= rows.min() <= rows.max() < count:
        raise IndexError(f"row numbers must be from 0 to {count - 1}")
    gathered = np.empty((len(rows), *blocks[0].shape[1:]), blocks[0].dtype)
    for place, row in enumerate(rows):
        gathered[place] = blocks[row // block_rows][row % block_rows]
    return gathered
