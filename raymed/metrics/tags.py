"""Tag recall: how many of an image's tags are among the k ranked first (Table 3)."""

from collections.abc import Collection, Sequence

import numpy as np


def recall_at(k: int, ranked: np.ndarray, truth: Sequence[Collection[int]]) -> float:
    """Mean over images of \\|first k ranked tags ∩ true tags\\| / \\|true tags\\|.

    Each image counts the same, however many tags it has. Images without tags are left out.

    Args:
        k: how many of the ranked tags count, at least 1. Where the vocabulary has fewer than k
            tags, all of them count.
        ranked: tag ids, best first, integers [images, at least min(k, vocabulary)].
        truth: the different tag ids of each image. A tag outside the vocabulary, which no model
            can predict, is given as a negative id (a different one for each) and counts as missed.

    Returns:
        The recall, from 0 to 1; NaN if no image has a tag.

    Raises:
        ValueError: k is below 1, or ``ranked`` is not one row per image of ``truth``.
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
