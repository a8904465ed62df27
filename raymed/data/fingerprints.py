"""Which images a split holds: eight bytes of a hash of each one's id, and of its pixels.

With them it can be said of any image whether a model was trained on it, wherever it lies now: 16
bytes an image. They are computed once per dataset and kept in the cache, beside the pixels.
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
"""Images that are read at a time."""


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """Of some images.

    Attributes:
        ids: uint64 [n], of their ids.
        pixels: uint64 [n], of their pixels, as prepared.
    """

    ids: np.ndarray
    pixels: np.ndarray

    @classmethod
    def compute(cls, split: Split, what: str) -> Self:
        """Those of a split, in its order."""
        ids, pixels = (np.empty(len(split), np.uint64) for _ in range(2))
        with Progress(what, len(split)) as progress:
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
        """Read a file; OSError or SafetensorError if it is not there or damaged."""
        kept = safetensors.numpy.load_file(file)
        return cls(kept["ids"], kept["pixels"])

    def save(self, file: Path) -> None:
        """Write a file, whole or not at all; OSError if it cannot be written."""
        with atomic_path(file) as partial:
            safetensors.numpy.save_file({"ids": self.ids, "pixels": self.pixels}, partial)

    def joined(self, others: Sequence["Fingerprints"]) -> "Fingerprints":
        """Those of all of them, each once."""
        each = [self, *others]
        return Fingerprints(
            *(
                np.unique(np.concatenate([getattr(one, name) for one in each]))
                for name in ("ids", "pixels")
            )
        )


def fingerprints_file(dataset: PreparedDataset, split_name: str) -> Path:
    """The file in the cache with the fingerprints of a split, which one process of a node computes.

    Raises:
        UsageError: the split cannot be opened, or the cache not be written.
    """
    split = dataset.split(split_name)
    file = cache_folder(dataset.info.content_hash) / f"{split_name}.safetensors"
    try:
        if not _is_whole(file, len(split)):
            with file_lock(file.with_suffix(".hashing")):
                if not _is_whole(file, len(split)):
                    Fingerprints.compute(split, f"hashing the {split_name} images").save(file)
    except OSError as error:
        raise UsageError(
            f"{file}: cannot be written ({reason(error)}); make room, or set XDG_CACHE_HOME to a "
            "folder with room, on a disk that has file locks"
        ) from error
    return file


def _is_whole(file: Path, images: int) -> bool:
    try:
        with safetensors.safe_open(file, "numpy") as kept:
            return all(kept.get_slice(name).get_shape() == [images] for name in ("ids", "pixels"))
    except (OSError, safetensors.SafetensorError):
        return False


def _hash(content: bytes | memoryview) -> int:
    # Where the processor computes SHA-256 it is the quickest of those in hashlib.
    return int.from_bytes(hashlib.sha256(content).digest()[:8])
