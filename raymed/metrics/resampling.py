"""Bootstrap intervals of scores, and paired tests of two systems, over studies.

Scores follow from sums of counts over images (`PerImage`), so a resample of studies is a weighted
sum: [resamples, studies] times [studies, counts], computed for a few hundred studies at a time. A
thousand studies take about 11 ms of a CPU for each system (25,000 studies of two reports, with
``tests.benchmarks.score``), so a million about 11 s; the memory is 16 bytes an image. In resamples
CIDEr keeps the document frequencies of the whole split.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from raymed.metrics.scoring import PerImage
from raymed.progress import track

RESAMPLES = 1000
"""Bootstrap resamples (Efron and Tibshirani 1993)."""
SHUFFLES = 10_000
"""Random exchanges of two systems' reports."""
SEED = 0
CHUNK = 256
"""Studies processed at a time."""
LEVEL = 95
"""Of the intervals, in percent."""

Interval = tuple[float, float]


def study_numbers(studies: Iterable[str], images: int) -> np.ndarray:
    """A number for the study of each image, int64 [images], the same in every process."""
    return np.fromiter(map(_number, studies), np.int64, images)


def _number(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), signed=True)


class StudySums:
    """The counts of several metrics, summed over the images of each study.

    Args:
        per_image: The metrics, each of the same images.
        studies: The study of each image, as any integers [images].
    """

    def __init__(self, per_image: Sequence[PerImage], studies: np.ndarray) -> None:
        self._per_image = per_image
        self._order = np.argsort(studies, kind="stable")
        ordered = studies[self._order]
        self._starts = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))
        self.columns = 1 + sum(each.counts.shape[1] for each in per_image)

    def __len__(self) -> int:
        """The number of studies."""
        return len(self._starts)

    def chunks(self) -> Iterator[np.ndarray]:
        """The sums of `CHUNK` studies at a time, float64 [studies, columns].

        The last column is the number of images.
        """
        ends = np.append(self._starts, len(self._order))
        for first in range(0, len(self), CHUNK):
            starts = self._starts[first : first + CHUNK]
            images = self._order[starts[0] : ends[min(first + CHUNK, len(self))]]
            counts = [each.counts[images] for each in self._per_image]
            table = np.column_stack([*counts, np.ones(len(images))])
            yield np.add.reduceat(table, starts - starts[0], axis=0, dtype=np.float64)

    def scores(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Scores by key, float64 [R], from sums [R, columns]."""
        found: dict[str, np.ndarray] = {}
        start = 0
        for each in self._per_image:
            stop = start + each.counts.shape[1]
            found |= each.scores(sums[:, start:stop], sums[:, -1])
            start = stop
        return found

    def total(self) -> np.ndarray:
        """The sums over all studies, float64 [1, columns]."""
        return sum((some.sum(axis=0) for some in self.chunks()), np.zeros(self.columns))[None]


def intervals(per_image: Sequence[PerImage], studies: np.ndarray) -> dict[str, Interval]:
    """Percentile bootstrap intervals, by key, of all scores that are defined.

    Args:
        per_image: The metrics, each of the same images.
        studies: The study of each image, as any integers [images].
    """
    sums = StudySums(per_image, studies)
    (resampled,) = bootstrap([sums])
    found = sums.scores(resampled)
    return {key: interval(scores) for key, scores in found.items() if not np.isnan(scores).all()}


def interval(values: np.ndarray) -> Interval:
    """The central 95 % of some values, without NaN."""
    low, high = np.nanpercentile(values, [50 - LEVEL / 2, 50 + LEVEL / 2])
    return float(low), float(high)


def bootstrap(systems: Sequence[StudySums]) -> list[np.ndarray]:
    """Sums over the studies of each resample, float64 [`RESAMPLES`, columns], for each system.

    All systems, which are of the same studies, get the same resamples.
    """
    studies = len(systems[0])
    sums = [np.zeros((RESAMPLES, each.columns)) for each in systems]
    weights = resamples(studies)
    of_chunks = zip(*(each.chunks() for each in systems), strict=True)
    chunks = -(-studies // CHUNK)
    for some in track(of_chunks, f"bootstrapping, {CHUNK} studies at a time", chunks):
        drawn = next(weights)
        for own, counts in zip(sums, some, strict=True):
            own += drawn @ counts
    return sums


def resamples(studies: int) -> Iterator[np.ndarray]:
    """How often each study is in each resample, float64 [`RESAMPLES`, studies], by chunks.

    Each resample has as many studies, drawn with replacement.
    """
    random = np.random.default_rng([SEED, 0])
    sizes = np.full(-(-studies // CHUNK), CHUNK)
    sizes[-1] = studies - CHUNK * (len(sizes) - 1)
    # How many studies of a resample are in each chunk, then which of the chunk's they are.
    numbers = random.multinomial(studies, sizes / studies, RESAMPLES)
    for size, drawn in zip(sizes.tolist(), numbers.T, strict=True):
        rows = np.repeat(np.arange(RESAMPLES) * size, drawn)
        places = rows + random.integers(size, size=len(rows))
        counted = np.bincount(places, minlength=RESAMPLES * size)
        yield counted.reshape(RESAMPLES, size).astype(np.float64)


def exchange(one: StudySums, other: StudySums) -> tuple[np.ndarray, np.ndarray]:
    """Sums of two systems whose reports are exchanged in each study at random.

    Approximate randomisation (Noreen 1989): if the systems do not differ, neither do their scores
    after exchanges.

    Returns:
        Twice float64 [`SHUFFLES`, columns].
    """
    exchanged = np.zeros((SHUFFLES, one.columns))
    pairs = zip(one.chunks(), other.chunks(), strict=True)
    masks = exchanges(len(one))
    for mine, theirs in track(pairs, "exchanging reports", -(-len(one) // CHUNK)):
        exchanged += next(masks) @ (theirs - mine)
    return one.total() + exchanged, other.total() - exchanged


def exchanges(studies: int) -> Iterator[np.ndarray]:
    """Which studies are exchanged, 0 or 1 as float64 [`SHUFFLES`, studies], by chunks."""
    random = np.random.default_rng([SEED, 1])
    for first in range(0, studies, CHUNK):
        size = min(CHUNK, studies - first)
        yield random.integers(2, size=(SHUFFLES, size), dtype=np.int8).astype(np.float64)


def p_value(observed: float, simulated: Iterable[float]) -> float:
    """The two-sided p-value of a difference, (k + 1) / (n + 1).

    k of the n differences simulated under the null hypothesis are at least as large. NaN is left
    out; if all are NaN, so is the p-value.
    """
    values = np.abs(np.asarray(simulated, np.float64))
    values = values[~np.isnan(values)]
    if math.isnan(observed) or not len(values):
        return math.nan
    # Sums in another order differ in their last digits.
    reached = int((values >= abs(observed) - 1e-12).sum())
    return (reached + 1) / (len(values) + 1)
