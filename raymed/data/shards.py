"""The two kinds of work that preparing spreads: decoding images, and writing Parquet parts.

Which split an image belongs to is known only when all are read. So pixels wait in shards, files
of `shard_rows` images each in the order of the source, and the parts are gathered from them. Each
piece of work reads and writes files by itself and returns only a few words, so no process ever
holds more than one piece, and any process can do any piece again: it writes the same bytes.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymed.data.images import read_image
from raymed.data.limits import ImageError
from raymed.data.schema import Part, part_schema
from raymed.errors import UsageError
from raymed.storage import AnyPath, read_range

PART_ROWS = 1024
_PART_BYTES = 64 * 2**20
_SHARD_ROWS = 128
_SHARD_BYTES = 16 * 2**20

Work = TypeVar("Work")
Result = TypeVar("Result")


class Spread(Protocol):
    """How pieces of work are done; the results may come in any order."""

    def __call__(
        self, do: Callable[[Work], Result], pieces: Iterable[Work]
    ) -> Iterator[Result]: ...


def in_process(do: Callable[[Work], Result], pieces: Iterable[Work]) -> Iterator[Result]:
    """One piece after the other in the calling process."""
    return map(do, pieces)


def part_rows(image_size: int) -> int:
    """Rows of a part: `PART_ROWS`, or fewer where the images are so large that memory matters."""
    return max(1, min(PART_ROWS, _PART_BYTES // image_size**2))


def shard_rows(image_size: int) -> int:
    """Images of a shard, likewise."""
    return max(1, min(_SHARD_ROWS, _SHARD_BYTES // image_size**2))


@dataclass(frozen=True)
class Shard:
    """Images to decode into one file; ``number`` counts the shards from 0."""

    number: int
    images: Sequence[Path | np.ndarray]
    size: int
    folder: AnyPath


@dataclass(frozen=True)
class Decoded:
    """What became of a shard's images."""

    number: int
    images: int
    failed: list[tuple[int, str]]
    """Place in the shard and reason of each that cannot be used."""
    missing: Path | None
    """The first file that is not there, as this machine sees it."""


def write_shard(shard: Shard) -> Decoded:
    """Decode images into a file of uint8 [images, size, size]; one that fails is black there.

    Raises:
        UsageError: this machine does not see the folder of the shards.
        OSError: the shard cannot be written.
    """
    pixels = np.zeros((len(shard.images), shard.size, shard.size), np.uint8)
    failed = []
    missing = None
    for row, image in enumerate(shard.images):
        try:
            pixels[row] = read_image(image, shard.size)
        except ImageError as error:
            failed.append((row, str(error)))
            if missing is None and isinstance(image, Path) and not image.exists():
                missing = image
    try:
        (shard.folder / _shard_file(shard.number)).write_bytes(pixels.data)
    except FileNotFoundError as error:
        raise UsageError(
            f"{shard.folder}: a machine of the cluster ({os.uname().nodename}) does not see "
            "this folder: let `out` be in a folder that all machines share, or a URI such as "
            "s3://bucket/folder"
        ) from error
    return Decoded(shard.number, len(shard.images), failed, missing)


def _shard_file(number: int) -> str:
    return f"{number:07}.pixels"


@dataclass(frozen=True)
class PartWork:
    """Rows to write into one Parquet part."""

    file: str
    rows: list[bytes]
    """Each row without its pixels, as JSON."""
    images: np.ndarray
    """Each row's place in the order of the source, rising, int64 [rows]."""
    size: int
    shards: AnyPath
    final: AnyPath


@dataclass(frozen=True)
class Written:
    """A part that was written."""

    part: Part
    digests: bytes
    """SHA-256 of each row, its pixels included, one after another."""


def write_part(work: PartWork) -> Written:
    """Gather a part's pixels from the shards and write it; OSError if that cannot be done."""
    schema = part_schema(work.size)
    digests = []
    with (work.final / work.file).open("wb") as stream:
        hashed = _Hashed(stream)
        with pq.ParquetWriter(
            pa.PythonFile(hashed, "w"),
            schema,
            compression="zstd",
            use_dictionary=False,
            write_page_checksum=True,
        ) as writer:
            # A shard's worth of rows at a time is all that is in memory.
            group = shard_rows(work.size)
            for start in range(0, len(work.rows), group):
                texts = work.rows[start : start + group]
                pixels = _gather(work, work.images[start : start + group])
                for text, row in zip(texts, pixels, strict=True):
                    digests.append(hashlib.sha256(text + row.tobytes()).digest())
                rows = pa.Table.from_pylist(
                    [json.loads(text) for text in texts], pa.schema(list(schema)[:-1])
                )
                column = pa.FixedSizeBinaryArray.from_buffers(
                    schema.field("pixels").type, len(pixels), [None, pa.py_buffer(pixels)]
                )
                writer.write_table(rows.append_column(schema.field("pixels"), column))
    part = Part(work.file, len(work.rows), hashed.digest.hexdigest())
    return Written(part, b"".join(digests))


def _gather(work: PartWork, images: np.ndarray) -> np.ndarray:
    """The pixels of images by their place in the order of the source, uint8 [images, bytes]."""
    row_bytes = work.size**2
    pixels = np.empty((len(images), row_bytes), np.uint8)
    shards, places = np.divmod(images, shard_rows(work.size))
    for shard in np.unique(shards):
        rows = np.flatnonzero(shards == shard)
        first, last = places[rows[0]], places[rows[-1]]
        # One read from the first row that is needed to the last: the fewer of them the better,
        # where each is a request over a network.
        content = read_range(
            work.shards / _shard_file(shard),
            int(first) * row_bytes,
            int(last - first + 1) * row_bytes,
        )
        pixels[rows] = np.frombuffer(content, np.uint8).reshape(-1, row_bytes)[places[rows] - first]
    return pixels


class _Hashed:
    """A file that is written once, and the SHA-256 of what is."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.digest = hashlib.sha256()
        self.closed = False
        self._stream = stream

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        self._stream.write(content)
        return len(content)

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        self.closed = True
