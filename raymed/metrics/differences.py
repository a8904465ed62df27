"""Intervals of paired differences: is one system better than another, or was it luck?"""

from dataclasses import dataclass

import numpy as np

from raymed.metrics.resampling import LEVEL
from raymed.progress import track

DRAWS = 10_000
"""Resamples of the studies."""


@dataclass(frozen=True)
class MeanDifference:
    """A mean difference and the interval that covers the true one in `LEVEL` % of cases."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the two can be told apart."""
        return self.low > 0 or self.high < 0


def paired_difference(differences: np.ndarray, studies: np.ndarray) -> MeanDifference:
    """The interval of a mean difference over seeds and studies, both of them samples.

    The reports of a study are not independent of each other, so whole studies are resampled with
    replacement (Efron and Tibshirani 1993, chapter 8), each with its mean over the seeds. Two or
    three seeds are too few to be resampled: a bootstrap never leaves the range of the seeds seen,
    which contains the true mean of three with a probability of 0.75 only. So each draw is shifted
    by t s / sqrt(S), where s is the standard deviation of the S seeds' means, and t is drawn from
    Student's distribution with S - 1 degrees of freedom. Where the studies decide, the result is
    the percentile bootstrap's interval; where the seeds do, it is Student's. What differs by chance
    between both seeds and studies is counted twice, which makes the interval slightly wider.

    Args:
        differences: The difference in score [S, images] of the same image with the same seed; the
            score of a split is the mean over its images.
        studies: The study of each image [images], as integers.

    Raises:
        ValueError: There are fewer than two seeds or studies.
    """
    seeds = len(differences)
    distinct, study = np.unique(studies, return_inverse=True)
    if seeds < 2 or len(distinct) < 2:
        raise ValueError(
            f"an interval needs at least two seeds and two studies, got {seeds} and {len(distinct)}"
        )
    sums = np.bincount(study, differences.mean(axis=0))
    images = np.bincount(study)
    error = differences.mean(axis=1).std(ddof=1) / np.sqrt(seeds)
    random = np.random.default_rng(0)
    means = error * random.standard_t(seeds - 1, DRAWS)
    for draw in track(range(DRAWS), "resampling studies", DRAWS):
        chosen = random.integers(len(distinct), size=len(distinct))
        means[draw] += sums[chosen].sum() / images[chosen].sum()
    tail = (100 - LEVEL) / 200
    low, high = np.quantile(means, [tail, 1 - tail])
    return MeanDifference(float(sums.sum() / images.sum()), float(low), float(high))
