"""Scores of a whole split, by every metric of the table.

Each metric's module has one function::

    def score(predictions: Predictions) -> dict[str, float | int | None]

which gives the values of the module's metrics by their keys. It may raise `Unavailable` where this
machine cannot compute them. It is not asked about reports where the system writes none.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from raymed.metrics.ngrams import Texts
from raymed.metrics.table import Metric

Scores = dict[str, float | int | None]
"""Values by the keys of their metrics; None where a metric could not be measured. Shares and scores
are from 0 to 1, CIDEr from 0 to 10."""


class Lists(Protocol):
    """A list of sentences or tags for each image, which can be iterated over again and again."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Sequence[str]]: ...


@dataclass(frozen=True)
class Predictions:
    """What was predicted for a split beside the truth, an entry for each image.

    Attributes:
        references: The full preprocessed reports.
        reports: The generated reports: lower-case words separated by spaces; None for a system
            that writes none.
        sentences: The sentences of the generated reports; None as above.
        tags: The images' tags.
        predicted_tags: Tags ranked by probability, the likeliest first.
        lexicon: Further texts; scorings given the same lexicon share METEOR's start-up work.
    """

    references: Texts
    reports: Texts | None
    sentences: Lists | None
    tags: Lists
    predicted_tags: Lists
    lexicon: Iterable[str] = ()

    def pairs(self) -> tuple[Texts, Texts]:
        """References and generated reports.

        Raises:
            ValueError: There is no pair, the two differ in number, or a reference has no words.
        """
        assert self.reports is not None
        check_pairs(self.references, self.reports)
        return self.references, self.reports


class Unavailable(RuntimeError):
    """A metric cannot be computed for these texts or on this machine; the message says why."""


def score_split(
    predictions: Predictions, metrics: Sequence[Metric]
) -> tuple[Scores, dict[str, str]]:
    """Compute metrics over a whole split, each module once.

    Returns:
        The values by key, None for those that cannot be measured; and for those that this machine
        cannot compute, why.

    Raises:
        ValueError: As `Predictions.pairs`.
    """
    found: Scores = {}
    reasons: dict[str, str] = {}
    applicable = [m for m in metrics if m.of != "reports" or predictions.reports is not None]
    for module in dict.fromkeys(metric.module for metric in applicable):
        try:
            found |= import_module(module).score(predictions)
        except Unavailable as error:
            reasons |= {m.key: str(error) for m in applicable if m.module == module}
    return {metric.key: found.get(metric.key) for metric in metrics}, reasons


def check_pairs(references: Texts, hypotheses: Texts) -> None:
    """Check that each reference has words and one hypothesis.

    Raises:
        ValueError: There is no pair, the two differ in number, or a reference has no words.
    """
    if len(references) != len(hypotheses):
        raise ValueError(
            f"there must be one hypothesis per reference, got {len(hypotheses)} hypotheses "
            f"for {len(references)} references"
        )
    if not len(references):
        raise ValueError("there is nothing to score: no reference and no hypothesis")
    for image, text in enumerate(references):
        if not text.split():
            raise ValueError(f"a reference must have words, number {image} (from 0) has none")
