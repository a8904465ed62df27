"""The normality share: how much of what is written describes normality (Table 2)."""

from collections.abc import Iterable

NORMALITY_WORDS = frozenset(("no", "normal", "clear", "stable"))


def normality_share(sentences: Iterable[str]) -> float:
    """Share of sentences that describe normality: ``no``, ``normal``, ``clear`` or ``stable``.

    Args:
        sentences: all sentences of all reports, each lower-case words separated by spaces.

    Returns:
        The share, from 0 to 1; NaN if there is no sentence.
    """
    describes = [not NORMALITY_WORDS.isdisjoint(sentence.split()) for sentence in sentences]
    return sum(describes) / len(describes) if describes else float("nan")
