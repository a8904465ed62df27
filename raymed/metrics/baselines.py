"""What a model must beat: the best constant report, and the nearest training image's report.

Both process the training split a few hundred images at a time, so it may be of any size.
"""

from collections.abc import Iterator
from itertools import compress
from typing import NamedTuple, Protocol

import numpy as np

from raymed.metrics.cider import SIGMA
from raymed.metrics.ngrams import Counts, Frequencies, NGrams, Texts, chunks, mapped
from raymed.progress import Progress

CANDIDATES = 500
"""How many of the most frequent, and of the most central, reports are candidates."""
GRID = 32
"""Rows and columns of the block means by which images are compared."""
CHUNK = 256
"""Training images compared at a time."""
QUERIES = 1024
"""Images that the training images are compared with at a time."""
NONE = -1
"""In place of a training image's row, where there is none to compare with."""


def best_constant(train_references: Texts) -> str:
    """The training report that, written for every training image, has the highest CIDEr.

    The CIDEr-D of candidate c is the mean over images i and lengths n of::

        10 exp(-(l_c - l_i)² / 2 sigma²) sum_g min(c_g, i_g) i_g / (|c|_n |i|_n)

    where g are the n-grams of n words, c_g and i_g their tf-idf in the two reports, and l is the
    number of a report's 2-grams (as in pycocoevalcap, whose value this equals).

    Candidates are the most frequent reports and the most central ones: those of the highest CIDEr
    without clipping and penalty, which is a product with the mean report. Ties go to the first.

    Takes about 50 bytes of memory per report, and about 2 KB per report of 40 words in
    memory-mapped temporary files.

    Args:
        train_references: The report of each training image.

    Raises:
        ValueError: There is no report.
        UsageError: The disk of the temporary files is full.
    """
    if not len(train_references):
        raise ValueError("the best constant report is one of the training reports, got none")
    reports = _Reports(train_references)
    of_images = reports.images.astype(np.float64)
    mean = mapped(_zeros(len(reports.frequencies)), np.dtype(np.float64))
    for rows, counts, place, unit in reports.weighted():
        np.add.at(mean, place, unit * of_images[rows][counts.text])
    centrality = np.empty(len(of_images))
    for rows, counts, place, unit in reports.weighted():
        centrality[rows] = np.bincount(counts.text, unit * mean[place], rows.stop - rows.start)
    frequent = np.argsort(-of_images, kind="stable")[:CANDIDATES]
    central = np.argsort(-centrality, kind="stable")[:CANDIDATES]
    chosen = np.union1d(frequent, central)
    candidates = reports.texts_of(chosen)

    similarity = _Similarity(reports, candidates)
    total = np.zeros(len(candidates))  # CIDEr up to a factor that all candidates share
    for rows, counts, _, unit in reports.weighted():
        total += similarity(counts, unit, rows.stop - rows.start) @ of_images[rows]
    # Sums in another order differ in their last digits.
    return candidates[int(np.argmax(total >= total.max() * (1 - 1e-9)))]


class _Weighted(NamedTuple):
    """The n-grams of some reports, P in all."""

    rows: slice
    """The reports' positions among all."""
    counts: Counts
    place: np.ndarray
    """int64 [P]: the n-gram's index among those of all reports."""
    unit: np.ndarray
    """float64 [P]: its tf-idf, divided by the norm over its report's n-grams of the same n."""


class _Reports:
    """The distinct reports of a split, in the order of their first images."""

    def __init__(self, references: Texts) -> None:
        self._references = references
        hashes = np.fromiter(map(hash, references), np.int64, len(references))
        _, first, images = np.unique(hashes, return_index=True, return_counts=True)
        self.images = images[np.argsort(first)]
        """How many images have each report."""
        self._is_first = np.zeros(len(references), bool)
        self._is_first[first] = True
        self.ngrams = NGrams()
        self.frequencies = Frequencies(self.ngrams, references)

    def __iter__(self) -> Iterator[str]:
        return compress(self._references, self._is_first)

    def texts_of(self, rows: np.ndarray) -> list[str]:
        """The texts of some reports, given by ascending indices."""
        wanted = np.zeros(len(self.images), bool)
        wanted[rows] = True
        return list(compress(self, wanted))

    def weighted(self) -> Iterator[_Weighted]:
        """All n-grams, some reports at a time."""
        start = 0
        with Progress("weighting the training reports", len(self.images)) as progress:
            for texts in chunks(self):
                rows = slice(start, start + len(texts))
                yield _Weighted(rows, *self.weigh(texts))
                start = rows.stop
                progress.update(start)

    def weigh(self, texts: list[str]) -> tuple[Counts, np.ndarray, np.ndarray]:
        """The n-grams of some texts, as in `_Weighted`."""
        counts = self.ngrams.count(texts)
        place, idf = self.frequencies.look_up(counts.key)
        tf_idf = counts.times * idf
        norm = counts.norms(tf_idf, len(texts))[counts.part]
        unit = np.divide(tf_idf, norm, out=np.zeros_like(tf_idf), where=norm > 0)
        return counts, place, unit


class _Similarity:
    """CIDEr-D of each candidate with each of some reports.

    For an n-gram that occurs k times in one report and m times in the other, min(c_g, i_g) is its
    idf times min(k, m). The latter is the number of levels 1, 2, ... that neither k nor m is below,
    so the sum over n-grams is one matrix product for each level.
    """

    def __init__(self, reports: _Reports, candidates: list[str]) -> None:
        # Ray's workers import this module, and need not load scipy at their start.
        from scipy.sparse import csr_array

        self._matrix = csr_array
        counts, _, unit = reports.weigh(candidates)
        self._keys, column = np.unique(counts.key, return_inverse=True)
        self._lengths = counts.lengths(len(candidates))
        shape = len(candidates), len(self._keys)
        self._levels = []
        for level in range(1, int(counts.times.max(initial=0)) + 1):
            has = counts.times >= level
            values = unit[has] / counts.times[has]
            places = counts.text[has], column[has]
            self._levels.append(self._matrix((values, places), shape))

    def __call__(self, counts: Counts, unit: np.ndarray, texts: int) -> np.ndarray:
        """The CIDEr-D of C candidates and weighted texts: float64 [C, texts]."""
        lengths = counts.lengths(texts)
        similarity = np.zeros((len(self._lengths), texts))
        row = np.minimum(np.searchsorted(self._keys, counts.key), max(0, len(self._keys) - 1))
        for level, candidates in enumerate(self._levels, start=1):
            has = (self._keys[row] == counts.key) & (counts.times >= level)
            places = row[has], counts.text[has]
            reports = self._matrix((unit[has], places), (len(self._keys), texts))
            similarity += (candidates @ reports).toarray()
        penalty: np.ndarray = np.exp(-((self._lengths[:, None] - lengths) ** 2) / (2 * SIGMA**2))
        return similarity * penalty


def _zeros(count: int) -> Iterator[np.ndarray]:
    for start in range(0, count, 2**16):
        yield np.zeros(min(2**16, count - start))


class Described(Protocol):
    """Images, each described by a vector."""

    def __len__(self) -> int: ...
    def descriptors(self, rows: np.ndarray) -> np.ndarray:
        """float64 [n, K] of rows [n]."""


class Images(Protocol):
    """A split's images."""

    def __len__(self) -> int: ...
    def pixels(self, rows: np.ndarray) -> np.ndarray:
        """uint8 [n, H, W] of rows [n]."""


class BlockMeans:
    """Images, each described by its pixels.

    An image is reduced to at most 32 x 32 block means, standardised to zero mean and unit variance
    (a uniformly grey image stays zero).
    """

    def __init__(self, images: Images) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def descriptors(self, rows: np.ndarray) -> np.ndarray:
        """float64 [n, min(32, H) min(32, W)] of rows [n]."""
        return _block_means(self._images.pixels(rows))


def nearest(
    train: Described,
    images: Described,
    count: int,
    groups: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """Find the training image most like each image, by the Euclidean distance of descriptors.

    Ties go to the first training image.

    Args:
        train: The training images; ``CHUNK`` are read at a time.
        images: The images to find the nearest of; the descriptors of ``QUERIES`` are held at a
            time.
        count: The number of ``images``, from the first.
        groups: Group numbers, int64, of the training images and of ``images``; images of the same
            group are not compared.

    Returns:
        int64 [count]: rows of ``train``, or `NONE` where there is none to compare with.

    Raises:
        ValueError: ``train`` is empty, or the descriptors differ in size.
    """
    if not len(train):
        raise ValueError("the nearest training image needs training images, got none")
    sizes = [each.descriptors(np.arange(min(1, len(each)))).shape[1] for each in (train, images)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"images to compare must be described alike, got {sizes[0]} numbers each in training "
            f"and {sizes[1]}"
        )
    found = [np.empty(0, np.int64)]
    with Progress("comparing images with the training images", count * len(train)) as progress:
        for start in range(0, count, QUERIES):
            stop = min(start + QUERIES, count)
            starts = range(start, stop, CHUNK)
            queries = np.concatenate(
                [images.descriptors(np.arange(s, min(s + CHUNK, stop))) for s in starts]
            )
            own = None if groups is None else (groups[0], groups[1][start:stop])
            found.append(_nearest(train, queries, own, progress))
    return np.concatenate(found)


def _nearest(
    train: Described,
    queries: np.ndarray,
    groups: tuple[np.ndarray, np.ndarray] | None,
    progress: Progress,
) -> np.ndarray:
    nearest_row = np.full(len(queries), NONE)
    nearest_distance = np.full(len(queries), np.inf)
    squares = (queries**2).sum(axis=1)[:, None]
    for start in range(0, len(train), CHUNK):
        stop = min(start + CHUNK, len(train))
        keys = train.descriptors(np.arange(start, stop))
        distance = queries @ keys.T
        distance *= -2
        distance += squares
        distance += (keys**2).sum(axis=1)
        # Rounded, because a matrix product of equal images need not be equal in the last digits.
        np.round(distance, 6, out=distance)
        if groups is not None:
            distance[groups[1][:, None] == groups[0][start:stop]] = np.inf
        index = distance.argmin(axis=1)
        least = distance[np.arange(len(queries)), index]
        closer = least < nearest_distance
        nearest_row[closer] = start + index[closer]
        nearest_distance[closer] = least[closer]
        progress.advance(len(queries) * len(keys))
    return nearest_row


def _block_means(images: np.ndarray) -> np.ndarray:
    """Standardised block means of uint8 images [n, H, W]: float64 [n, min(32, H) min(32, W)]."""
    height, width = images.shape[1:]
    rows = np.arange(min(GRID, height)) * height // min(GRID, height)
    columns = np.arange(min(GRID, width)) * width // min(GRID, width)
    # One row of blocks at a time, several times as fast as `reduceat` along this axis.
    ends = [*rows[1:], height]
    blocks = [
        images[:, top:end].sum(axis=1, dtype=np.uint32) for top, end in zip(rows, ends, strict=True)
    ]
    sums = np.add.reduceat(np.stack(blocks, axis=1), columns, axis=2, dtype=np.int64)
    pixels = np.outer(np.diff(rows, append=height), np.diff(columns, append=width))
    means = (sums / pixels).reshape(len(images), pixels.size)
    means -= means.mean(axis=1, keepdims=True)
    deviation = means.std(axis=1, keepdims=True)
    return means / np.where(deviation > 1e-6, deviation, np.inf)
