"""Tag recall: how many of an image's tags are among the k ranked first (Table 3)."""

from collections.abc import Collection, Sequence

import numpy as np

from raymed.metrics.scoring import PerImage, Predictions, ratio

DEPTHS = (5, 10, 20)
"""The numbers of ranked tags k that recall@k is reported at."""


def recall_at(k: int, ranked: np.ndarray, truth: Sequence[Collection[int]]) -> float:
    """Mean over images of \\|first k ranked tags ∩ true tags\\| / \\|true tags\\|.

    Every image has the same weight, however many tags it has. Images without tags are skipped.

    Args:
        k: The number of ranked tags that count, at least 1. If the vocabulary has fewer than k
            tags, all of them count.
        ranked: Tag ids, best first, integers [images, at least min(k, vocabulary)].
        truth: The distinct tag ids of each image. A tag outside the vocabulary, which no model
            can predict, is given as a negative id of its own and counts as missed.

    Returns:
        The recall, from 0 to 1; NaN if no image has a tag.

    Raises:
        ValueError: If k is below 1, or ``ranked`` is not one row per image of ``truth``.
    """
    if k < 1:
        raise ValueError(f"recall@k needs k of at least 1, got {k}")
    if ranked.ndim != 2 or len(ranked) != len(truth):
        raise ValueError(
            f"ranked must be [images, tags] for the {len(truth)} images of truth, "
            f"got shape {list(ranked.shape)}"
        )
    recalls = []
    for row, tags in zip(ranked[:, :k].tolist(), truth, strict=True):
        if tags:
            found = {tag for tag in tags if tag >= 0}.intersection(row)
            recalls.append(len(found) / len(tags))
    return float(np.mean(recalls)) if recalls else float("nan")


def measure(predictions: Predictions) -> PerImage:
    """Tag recall at every depth, a few hundred images at a time; NaN if no image has a tag."""
    assert predictions.predicted_tags is not None
    counts = np.zeros((len(predictions.tags), len(DEPTHS) + 1))
    pairs = enumerate(zip(predictions.tags, predictions.predicted_tags, strict=True))
    for image, (tags, predicted) in pairs:
        truth, ranked = set(tags), list(predicted)
        if truth:
            counts[image, :-1] = [len(truth.intersection(ranked[:k])) / len(truth) for k in DEPTHS]
            counts[image, -1] = 1
    return PerImage(counts, _scores)


def _scores(sums: np.ndarray, _: np.ndarray) -> dict[str, np.ndarray]:
    return {f"recall_{k}": ratio(sums[:, n], sums[:, -1]) for n, k in enumerate(DEPTHS)}
