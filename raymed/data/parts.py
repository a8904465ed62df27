"""Parts: the Parquet files of a prepared dataset, gathered from rows and shards."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymed.data.destination import Destination
from raymed.data.schema import Part, part_schema
from raymed.data.shards import read_pixels, shard_rows
from raymed.data.spool import Rows
from raymed.data.work import Executor
from raymed.progress import Progress
from raymed.storage import AnyPath

PART_ROWS = 1024
_PART_BYTES = 64 * 2**20


def part_rows(image_size: int) -> int:
    """Return the number of rows per part, which is smaller for large images."""
    return max(1, min(PART_ROWS, _PART_BYTES // image_size**2))


@dataclass(frozen=True)
class PartWork:
    """A piece of work: rows to write to one Parquet file."""

    file: str
    texts: list[bytes]
    """Each row without its pixels, as JSON."""
    rows: np.ndarray
    """Row numbers in ascending order, int64 [rows]."""
    image_size: int
    shards: AnyPath
    final: AnyPath


@dataclass(frozen=True)
class WrittenPart:
    """The result of writing a part."""

    part: Part
    digests: bytes
    """Concatenated SHA-256 of each row, including its pixels."""


def write_parts(
    rows: Rows,
    splits: Mapping[str, Sequence[int]],
    image_size: int,
    target: Destination,
    executor: Executor,
    progress: Progress,
) -> tuple[dict[str, list[Part]], bytes]:
    """Write the rows of each split.

    Args:
        rows: All rows.
        splits: Split -> its row numbers in ascending order.

    Returns:
        Split -> its parts, and a SHA-256 over all rows that does not depend on the part size.

    Raises:
        OSError: A part cannot be written.
    """
    written: dict[str, WrittenPart] = {}
    for result in executor(write_part, _part_works(rows, splits, image_size, target)):
        written[result.part.file] = result
        progress.advance(result.part.rows)
    parts: dict[str, list[Part]] = {split: [] for split in splits}
    digest = hashlib.sha256()
    for split, row_numbers in splits.items():
        digest.update(f"{split} {len(row_numbers)}".encode())
        # File numbers are zero-padded, so this is the order of the rows.
        for file in sorted(file for file in written if file.startswith(f"{split}-")):
            parts[split].append(written[file].part)
            digest.update(written[file].digests)
    return parts, digest.digest()


def _part_works(
    rows: Rows, splits: Mapping[str, Sequence[int]], image_size: int, target: Destination
) -> Iterator[PartWork]:
    length = part_rows(image_size)
    for split, row_numbers in splits.items():
        for number, start in enumerate(range(0, len(row_numbers), length)):
            chosen = row_numbers[start : start + length]
            yield PartWork(
                file=f"{split}-{number:05}.parquet",
                texts=[rows.text(row) for row in chosen],
                rows=np.array(chosen, np.int64),
                image_size=image_size,
                shards=target.scratch,
                final=target.final,
            )


def write_part(work: PartWork) -> WrittenPart:
    """Write one part, with its pixels from the shards; OSError if that fails."""
    schema = part_schema(work.image_size)
    digests = []
    with (work.final / work.file).open("wb") as stream:
        hashing = _HashingStream(stream)
        with pq.ParquetWriter(
            pa.PythonFile(hashing, "w"),
            schema,
            compression="zstd",
            use_dictionary=False,
            write_page_checksum=True,
        ) as writer:
            # Only one group of rows is in memory at a time.
            group = shard_rows(work.image_size)
            for start in range(0, len(work.rows), group):
                texts = work.texts[start : start + group]
                pixels = read_pixels(work.shards, work.image_size, work.rows[start : start + group])
                for text, row in zip(texts, pixels, strict=True):
                    digests.append(hashlib.sha256(text + row.tobytes()).digest())
                writer.write_table(_table(texts, pixels, schema))
    part = Part(work.file, len(work.rows), hashing.digest.hexdigest())
    return WrittenPart(part, b"".join(digests))


def _table(texts: Sequence[bytes], pixels: np.ndarray, schema: pa.Schema) -> pa.Table:
    """Join JSON rows and their pixels, uint8 [rows, bytes], which are not copied."""
    pixels_field = schema.field("pixels")
    rows = pa.Table.from_pylist([json.loads(text) for text in texts], pa.schema(list(schema)[:-1]))
    column = pa.FixedSizeBinaryArray.from_buffers(
        pixels_field.type, len(pixels), [None, pa.py_buffer(pixels)]
    )
    return rows.append_column(pixels_field, column)


class _HashingStream:
    """A writable file object that computes the SHA-256 of everything written to it."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self.digest = hashlib.sha256()
        self.closed = False
        self._stream = stream

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        self._stream.write(content)
        return len(content)

    def flush(self) -> None:
        """Do nothing; pyarrow requires the method."""

    def close(self) -> None:
        self.closed = True
