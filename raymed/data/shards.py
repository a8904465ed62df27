"""Shards: files of decoded pixels, which wait there until the split of every image is known.

A shard holds `shard_rows` images in the order of the source. The Parquet parts of the dataset are
gathered from shards in `raymed.data.parts`.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raymed.data.examples import ImageInput
from raymed.data.images import read_image
from raymed.data.limits import ImageError
from raymed.errors import UsageError
from raymed.storage import AnyPath, read_range

_SHARD_ROWS = 128
_SHARD_BYTES = 16 * 2**20


def shard_rows(image_size: int) -> int:
    """Return the number of images per shard, which is smaller for large images."""
    return max(1, min(_SHARD_ROWS, _SHARD_BYTES // image_size**2))


@dataclass(frozen=True)
class Shard:
    """A piece of work: images to decode into one file."""

    first_row: int
    """Row number of the first image."""
    images: Sequence[ImageInput]
    image_size: int
    folder: AnyPath


@dataclass(frozen=True)
class DecodedShard:
    """The result of decoding a shard."""

    count: int
    """Number of images, including those that failed."""
    failed: dict[int, str]
    """Row number -> reason, for images that cannot be used."""
    missing: Path | None
    """The first file that does not exist on the machine that decoded the shard."""


def shards_of(images: Iterable[ImageInput], image_size: int, folder: AnyPath) -> Iterator[Shard]:
    """Divide images into shards, with absolute paths."""
    rows = shard_rows(image_size)
    first_row = 0
    waiting: list[ImageInput] = []
    for image in images:
        waiting.append(image.absolute() if isinstance(image, Path) else image)
        if len(waiting) == rows:
            yield Shard(first_row, waiting, image_size, folder)
            first_row, waiting = first_row + rows, []
    if waiting:
        yield Shard(first_row, waiting, image_size, folder)


def write_shard(shard: Shard) -> DecodedShard:
    """Decode images into a file of uint8 [images, size, size], black where decoding fails.

    Raises:
        UsageError: The folder of the shards does not exist on this machine.
        OSError: The shard cannot be written.
    """
    size = shard.image_size
    pixels = np.zeros((len(shard.images), size, size), np.uint8)
    failed = {}
    missing = None
    for offset, image in enumerate(shard.images):
        try:
            pixels[offset] = read_image(image, size)
        except ImageError as error:
            failed[shard.first_row + offset] = str(error)
            if missing is None and isinstance(image, Path) and not image.exists():
                missing = image
    try:
        name = _shard_file(shard.first_row // shard_rows(size))
        (shard.folder / name).write_bytes(pixels.data)
    except FileNotFoundError as error:
        raise UsageError(
            f"{shard.folder}: this folder is not visible to {os.uname().nodename}, a machine "
            "of the cluster: set `out` to a folder that all machines share, or to a URI such as "
            "s3://bucket/folder"
        ) from error
    return DecodedShard(len(shard.images), failed, missing)


def read_pixels(folder: AnyPath, image_size: int, rows: np.ndarray) -> np.ndarray:
    """Read the pixels of some rows from their shards.

    Args:
        folder: Folder of the shards.
        image_size: Pixels per side.
        rows: Row numbers in ascending order, int64 [n].

    Returns:
        uint8 [n, image_size * image_size].

    Raises:
        OSError: A shard cannot be read.
    """
    row_bytes = image_size**2
    pixels = np.empty((len(rows), row_bytes), np.uint8)
    shards, offsets = np.divmod(rows, shard_rows(image_size))
    for shard in np.unique(shards):
        wanted = np.flatnonzero(shards == shard)
        first, last = offsets[wanted[0]], offsets[wanted[-1]]
        # One read for the whole range, since each may be a request over the network.
        content = read_range(
            folder / _shard_file(shard), int(first) * row_bytes, int(last - first + 1) * row_bytes
        )
        read = np.frombuffer(content, np.uint8).reshape(-1, row_bytes)
        pixels[wanted] = read[offsets[wanted] - first]
    return pixels


def _shard_file(number: int) -> str:
    return f"{number:07}.pixels"
