"""The normality share: the share of sentences that describe normality (Table 2)."""

from collections.abc import Iterable

import numpy as np

from raymed.metrics.scoring import PerImage, Predictions, ratio

NORMALITY_WORDS = frozenset(("no", "normal", "clear", "stable"))


def describes_normality(sentence: str) -> bool:
    """Whether ``no``, ``normal``, ``clear`` or ``stable`` is among the words.

    Args:
        sentence: Lower-case words separated by spaces.
    """
    return not NORMALITY_WORDS.isdisjoint(sentence.split())


def normality_share(sentences: Iterable[str]) -> float:
    """Share of sentences that describe normality.

    Args:
        sentences: The sentences of all reports, each lower-case words separated by spaces.

    Returns:
        The share, from 0 to 1; NaN if there is no sentence.
    """
    count = normal = 0
    for sentence in sentences:
        count += 1
        normal += describes_normality(sentence)
    return normal / count if count else float("nan")


def measure(predictions: Predictions) -> PerImage:
    """The normality share of the generated sentences."""
    assert predictions.sentences is not None
    counts = np.empty((len(predictions.sentences), 2), np.int32)
    for image, sentences in enumerate(predictions.sentences):
        counts[image] = sum(map(describes_normality, sentences)), len(sentences)
    return PerImage(counts, lambda sums, _: {"normality": ratio(sums[:, 0], sums[:, 1])})
