"""Scores of single images, whose mean over a split is the split's score."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from raymed.metrics.cider import CiderReward
from raymed.metrics.ngrams import chunks
from raymed.progress import track

Columns = Callable[[str], Any]
"""A column of a file of predictions by its name: sized, and iterable again and again."""


def _cider(columns: Columns) -> np.ndarray:
    """The CIDEr of each report; document frequencies are those of all references."""
    references = columns("reference")
    score = CiderReward(references)
    pairs = zip(references, columns("report"), strict=True)
    tracked = track(pairs, "computing CIDEr", len(references))
    return np.concatenate([score(*zip(*some, strict=True)) for some in chunks(tracked)])


def _recall_5(columns: Columns) -> np.ndarray:
    """The tag recall@5 of each image; NaN where an image has no tags."""

    def recalls() -> Iterator[float]:
        for tags, ranked in zip(columns("tags"), columns("predicted_tags"), strict=True):
            true = {*tags}
            yield len(true.intersection(ranked[:5])) / len(true) if true else np.nan

    return np.fromiter(recalls(), np.float64)


PER_REPORT: dict[str, Callable[[Columns], np.ndarray]] = {"cider": _cider, "recall_5": _recall_5}
"""How each metric is computed, float64 [images], from a file of predictions."""
