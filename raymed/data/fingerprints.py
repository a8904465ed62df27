"""Fingerprints of the images in a split: eight bytes of a hash of the id and of the pixels.

They tell whether a model was trained on an image, wherever the image is stored now, at a cost of 16
bytes per image. They are computed once per dataset and stored in the cache, beside the pixels.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import safetensors
import safetensors.numpy

from raymed.cache import cache_folder
from raymed.data.dataset import PreparedDataset, Split
from raymed.errors import UsageError
from raymed.locks import file_lock
from raymed.progress import Progress
from raymed.storage import atomic_path, reason

CHUNK = 256
"""Images to read at a time."""


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """Fingerprints of a set of images.

    Attributes:
        ids: Hashes of the image ids, uint64 [n].
        pixels: Hashes of the prepared pixels, uint64 [n].
    """

    ids: np.ndarray
    pixels: np.ndarray

    @classmethod
    def compute(cls, split: Split, description: str) -> Self:
        """Compute the fingerprints of a split, in order; ``description`` labels the progress."""
        ids, pixels = (np.empty(len(split), np.uint64) for _ in range(2))
        with Progress(description, len(split)) as progress:
            for start in range(0, len(split), CHUNK):
                rows = np.arange(start, min(start + CHUNK, len(split)))
                ids[rows] = [
                    _hash(name.encode()) for name in split.image_ids[rows[0] : rows[-1] + 1]
                ]
                pixels[rows] = [_hash(image.data) for image in split.pixels(rows)]
                progress.update(int(rows[-1]) + 1)
        return cls(ids, pixels)

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read a file; OSError or SafetensorError if it is missing or damaged."""
        arrays = safetensors.numpy.load_file(file)
        return cls(arrays["ids"], arrays["pixels"])

    def save(self, file: Path) -> None:
        """Write a file atomically; OSError if that fails."""
        with atomic_path(file) as partial:
            safetensors.numpy.save_file({"ids": self.ids, "pixels": self.pixels}, partial)

    def joined(self, others: Sequence["Fingerprints"]) -> "Fingerprints":
        """Return the union of several sets, without duplicates."""
        sets = [self, *others]
        return Fingerprints(
            np.unique(np.concatenate([each.ids for each in sets])),
            np.unique(np.concatenate([each.pixels for each in sets])),
        )


def fingerprints_file(dataset: PreparedDataset, split_name: str) -> Path:
    """Return the cache file with the fingerprints of a split, computing it on first use.

    One process per node computes it, while the others wait.

    Raises:
        UsageError: The split cannot be opened, or the cache cannot be written.
    """
    split = dataset.split(split_name)
    file = cache_folder(dataset.info.content_hash) / f"{split_name}.safetensors"
    try:
        if not _is_complete(file, len(split)):
            with file_lock(file.with_suffix(".hashing")):
                if not _is_complete(file, len(split)):
                    Fingerprints.compute(split, f"hashing the {split_name} images").save(file)
    except OSError as error:
        raise UsageError(
            f"{file}: cannot be written ({reason(error)}); free some space, or set XDG_CACHE_HOME "
            "to a folder with enough space, on a disk with file locks"
        ) from error
    return file


def _is_complete(file: Path, count: int) -> bool:
    try:
        with safetensors.safe_open(file, "numpy") as arrays:
            return all(arrays.get_slice(name).get_shape() == [count] for name in ("ids", "pixels"))
    except (OSError, safetensors.SafetensorError):
        return False


def _hash(content: bytes | memoryview) -> int:
    # With hardware support, SHA-256 is the fastest hash in hashlib.
    return int.from_bytes(hashlib.sha256(content).digest()[:8])
