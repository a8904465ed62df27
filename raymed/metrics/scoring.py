"""Scores of a whole split, by every metric of the table.

Each metric's module has one of two functions::

    def measure(predictions: Predictions) -> PerImage
    def score(predictions: Predictions) -> dict[str, float | int | None]

`measure` is for scores that follow from sums over images: they also have a value for each report
and an interval. `score` gives any other values of the module's metrics by their keys. Either may
raise `Unavailable` where this machine cannot compute them. It is not called if the predictions lack
what the metric is of.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Protocol

import numpy as np

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
        predicted_tags: Tags ranked by probability, the likeliest first; None if there are none.
        lexicon: Further texts; scorings given the same lexicon share METEOR's start-up work.
        findings: The names of each image's findings, as they occur in reports; None if they are
            not known.
    """

    references: Texts
    reports: Texts | None
    sentences: Lists | None
    tags: Lists
    predicted_tags: Lists | None
    lexicon: Iterable[str] = ()
    findings: Lists | None = None

    def pairs(self) -> tuple[Texts, Texts]:
        """References and generated reports.

        Raises:
            ValueError: There is no pair, the two differ in number, or a reference has no words.
        """
        assert self.reports is not None
        check_pairs(self.references, self.reports)
        return self.references, self.reports

    def has(self, metric: Metric) -> bool:
        """Whether a metric applies: whether there is what it is of."""
        if metric.of == "tags":
            return self.predicted_tags is not None
        if metric.of == "findings":
            return self.sentences is not None and self.findings is not None
        needs = self.sentences if metric.by_sentence else self.reports
        return metric.of == "reports" and needs is not None


@dataclass(frozen=True)
class PerImage:
    """What a metric counts in each image, such that its scores follow from the sums over images.

    Attributes:
        counts: Numbers [images, K].
        scores: From sums of counts over some images, float64 [R, K], and the numbers of these
            images, float64 [R]: scores by key, float64 [R], NaN where undefined. With the counts
            of single images it gives the scores of their reports.
    """

    counts: np.ndarray
    scores: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]

    def total(self) -> Scores:
        """The scores of all images, None where undefined."""
        # Not NumPy's sum: the last digit must not depend on the layout in memory.
        sums = np.array([[math.fsum(column) for column in self.counts.T]])
        found = self.scores(sums, np.array([float(len(self.counts))]))
        return {key: None if np.isnan(v[0]) else float(v[0]) for key, v in found.items()}


@dataclass(frozen=True)
class SplitScores:
    """The scores of a split.

    Attributes:
        scores: By key, None for those that cannot be measured.
        unavailable: Why this machine cannot compute a metric, by key.
        per_image: What the scores that have intervals are made of, by module.
    """

    scores: Scores
    unavailable: dict[str, str] = field(default_factory=dict)
    per_image: dict[str, PerImage] = field(default_factory=dict)


class Unavailable(RuntimeError):
    """A metric cannot be computed for these texts or on this machine; the message says why."""


def score_split(predictions: Predictions, metrics: Sequence[Metric]) -> SplitScores:
    """Compute metrics over a whole split, each module once.

    Raises:
        ValueError: As `Predictions.pairs`.
    """
    found: Scores = {}
    reasons: dict[str, str] = {}
    per_image: dict[str, PerImage] = {}
    applicable = [metric for metric in metrics if predictions.has(metric)]
    for name in dict.fromkeys(metric.module for metric in applicable):
        module = import_module(name)
        try:
            if hasattr(module, "measure"):
                per_image[name] = module.measure(predictions)
                found |= per_image[name].total()
            else:
                found |= module.score(predictions)
        except Unavailable as error:
            reasons |= {m.key: str(error) for m in applicable if m.module == name}
    scores = {metric.key: found.get(metric.key) for metric in metrics}
    return SplitScores(scores, reasons, per_image)


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """``above / below``, NaN where ``below`` is 0."""
    return np.divide(above, below, out=np.full(np.shape(above), math.nan), where=below != 0)


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
