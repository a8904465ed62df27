"""Images as an encoder sees them: the features by which the nearest training image is found."""

import hashlib
from collections.abc import Iterator

import numpy as np
import torch

from raymed.cache import cache_folder
from raymed.config import Config
from raymed.data.dataset import PreparedDataset, Split
from raymed.errors import UsageError
from raymed.metrics.ngrams import mapped
from raymed.model.encoder_shapes import widths
from raymed.model.system import System
from raymed.progress import track
from raymed.storage import atomic_path, reason
from raymed.training.features import STEP, digest


class PooledFeatures:
    """A split's images, each as the mean of its feature map over all regions, divided by its norm.

    The Euclidean distance of two such vectors orders pairs of images as their cosine similarity
    does. A mean of zeros stays zero.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = vectors

    def __len__(self) -> int:
        return len(self._vectors)

    def descriptors(self, rows: np.ndarray) -> np.ndarray:
        """float64 [n, D] of rows [n]."""
        return self._vectors[rows].astype(np.float64)


def pooled_features(
    model: System, config: Config, dataset: PreparedDataset, split_name: str
) -> PooledFeatures:
    """Compute the pooled features of a split, on the model's device and in its precision.

    Those of convolutions that a run does not train are the same for many runs, and are kept in the
    cache; others are kept in a temporary file. They take 4 D bytes per image.

    Args:
        model: A model whose encoder computes, in eval mode.
        config: The configuration it was trained with.
        dataset: The dataset.
        split_name: The name of one of its splits.

    Raises:
        UsageError: The cache or the temporary file cannot be written.
    """
    split, (depth, _) = dataset.split(split_name), widths(config.model.encoder)
    if config.model.train_encoder == "all":
        return PooledFeatures(_computed(model, split, depth))
    assert model.encoder is not None
    depends_on = digest(model.encoder, whole=False), dataset.info.content_hash, model.precision
    folder = cache_folder("pooled", hashlib.sha256(repr(depends_on).encode()).hexdigest())
    file = folder / f"{split_name}.npy"
    if not file.exists():
        vectors = _computed(model, split, depth)
        try:
            with atomic_path(file) as partial, partial.open("wb") as opened:
                np.save(opened, vectors)
        except OSError as error:
            raise UsageError(
                f"{file}: cannot be written ({reason(error)}); free some space, or set "
                "XDG_CACHE_HOME to a folder with enough"
            ) from error
    return PooledFeatures(np.load(file, mmap_mode="r"))


def _computed(model: System, split: Split, depth: int) -> np.ndarray:
    """float32 [images, D], memory-mapped."""
    return mapped(_batches(model, split), np.dtype(np.float32)).reshape(-1, depth)


def _batches(model: System, split: Split) -> Iterator[np.ndarray]:
    encoder, starts = model.encoder, range(0, len(split), STEP)
    assert encoder is not None
    for start in track(starts, "comparing images by the encoder's features, batches", len(starts)):
        rows = np.arange(start, min(start + STEP, len(split)))
        images = torch.from_numpy(split.pixels(rows)).to(model.device)
        # The context is left before each yield: a generator's caller computes in its own.
        with torch.inference_mode(), model.precision_context():
            pooled = encoder.feature_map(images).float().mean(dim=(2, 3))
        yield torch.nn.functional.normalize(pooled).cpu().numpy()
