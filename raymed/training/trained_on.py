"""The images a run was trained on, recorded in its checkpoints, and their overlap with a split.

Besides those of its training split, these are the images on which the run it started from was
trained: that of ``training.start_from`` or of ``model.encoder_weights``.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors

from raymed.cache import cache_folder
from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.data.fingerprints import Fingerprints, fingerprints_file
from raymed.errors import UsageError
from raymed.storage import local_copy, reason
from raymed.training.checkpoint import TRAINED_ON_FILE, Checkpoint
from raymed.training.start import encoder_run, starting_checkpoint


@dataclass(frozen=True)
class Overlap:
    """How many of a split's images a run was trained on.

    Attributes:
        images: Images that match a training image by id or by pixels.
        by_id: Images that match by id.
        by_pixels: Images that match by pixels.
    """

    images: int
    by_id: int
    by_pixels: int


def trained_on(checkpoint: Checkpoint) -> Fingerprints | None:
    """The images a checkpoint was trained on; None if it has no record of them.

    Raises:
        UsageError: The record is damaged.
    """
    file = checkpoint.path / TRAINED_ON_FILE
    if not file.is_file():
        return None
    try:
        with local_copy(file) as local:
            return Fingerprints.load(local)
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        raise UsageError(
            f"{file}: damaged ({reason(error)}). Copy it again, or delete it: which images the run "
            "was trained on is then unknown"
        ) from error


def trained_on_file(config: Config, dataset: PreparedDataset) -> Path | None:
    """The file, in the cache, that a run's checkpoints are to contain.

    Returns:
        None if the run starts from one that has no record of its training images.

    Raises:
        UsageError: The dataset or a checkpoint cannot be opened, or the cache cannot be written.
    """
    own = fingerprints_file(dataset, "train")
    source = starting_checkpoint(config) or encoder_run(config.model)
    if source is None:
        return own
    earlier = trained_on(source)
    if earlier is None:
        return None
    joined = Fingerprints.load(own).joined([earlier])
    name = hashlib.sha256(joined.ids.tobytes() + joined.pixels.tobytes()).hexdigest()
    file = cache_folder("trained-on") / f"{name}.safetensors"
    try:
        joined.save(file)
    except OSError as error:
        raise UsageError(
            f"{file}: cannot be written ({reason(error)}). Free some space, or set XDG_CACHE_HOME "
            "to a folder with enough space"
        ) from error
    return file


def overlap(checkpoint: Checkpoint, dataset: PreparedDataset, split_name: str) -> Overlap | None:
    """How many of a split's images a checkpoint was trained on; None if it has no record of them.

    Raises:
        UsageError: The split or the checkpoint's record cannot be read, or the cache cannot be
            written.
    """
    trained = trained_on(checkpoint)
    if trained is None:
        return None
    images = Fingerprints.load(fingerprints_file(dataset, split_name))
    by_id, by_pixels = _among(images.ids, trained.ids), _among(images.pixels, trained.pixels)
    return Overlap(int((by_id | by_pixels).sum()), int(by_id.sum()), int(by_pixels.sum()))


def _among(hashes: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which hashes are known, bool [n]; `numpy.isin` would copy the known ones several times."""
    ordered = np.sort(known)
    positions = np.minimum(np.searchsorted(ordered, hashes), len(ordered) - 1)
    among: np.ndarray = ordered[positions] == hashes
    return among
