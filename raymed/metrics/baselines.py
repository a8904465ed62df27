"""What a model must beat: the best constant report, and the nearest training image's report."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

CIDER_N = 4
"""CIDEr counts n-grams of 1 to 4 words."""
CIDER_SIGMA = 6.0
"""Width of CIDEr-D's Gaussian penalty on a difference in length."""
CANDIDATES = 500
"""How many most frequent, and how many most central, reports may become the constant one."""
GRID = 32
"""Rows and columns of block means that images are compared by."""
CHUNK = 256
"""How many training images are compared at a time."""


def best_constant(train_references: Sequence[str]) -> str:
    """The training report that, written for every training image, has the highest CIDEr.

    The CIDEr-D of candidate c is the mean over images i and lengths n of::

        10 exp(-(l_c - l_i)² / 2 sigma²) sum_g min(c_g, i_g) i_g / (|c|_n |i|_n)

    where g are the n-grams of n words, c_g and i_g their tf-idf in the two reports, and l is the
    number of a report's 2-grams (so in pycocoevalcap, whose value this is). It is computed from an
    inverted index: of each n-gram, the reports that have it.

    Candidates are the most frequent reports, and the most central: those of the highest CIDEr
    without clipping and penalty, which is a product with the mean report. Of equals, the first to
    occur is chosen.

    Args:
        train_references: the report of each training image: lower-case words separated by spaces.

    Raises:
        ValueError: there is no report.
    """
    if not train_references:
        raise ValueError("the best constant report is one of the training reports, got none")
    occurrences = Counter(train_references)
    reports = list(occurrences)
    images = np.array(list(occurrences.values()), dtype=np.float64)  # [R]: images per report

    # One posting says that a report has an n-gram, and how often; postings are sorted by n-gram.
    ids: dict[tuple[str, ...], int] = {}
    rows = [np.empty((0, 3), dtype=np.int64)]
    for number, report in enumerate(reports):
        counts = _ngrams(report.split()).items()
        row = [(ids.setdefault(ngram, len(ids)), number, count) for ngram, count in counts]
        rows.append(np.array(row, dtype=np.int64).reshape(-1, 3))
    postings = np.concatenate(rows)
    gram, report_of, count_in = postings[np.argsort(postings[:, 0], kind="stable")].T
    words = np.array([len(ngram) for ngram in ids], dtype=np.int64)  # [n-grams]: n
    first = np.searchsorted(gram, np.arange(len(ids) + 1))  # [n-grams + 1]: the first posting

    frequency = np.bincount(gram, weights=images[report_of])
    tf_idf = count_in * (np.log(len(train_references)) - np.log(frequency))[gram]
    part = report_of * CIDER_N + words[gram] - 1  # the part of a report's vector with one n
    norm = np.sqrt(np.bincount(part, weights=tf_idf**2))[part]
    unit = np.divide(tf_idf, norm, out=np.zeros_like(tf_idf), where=norm > 0)  # g_c / |c|_n

    mean = np.bincount(gram, weights=unit * images[report_of])
    centrality = np.bincount(report_of, weights=unit * mean[gram], minlength=len(reports))
    frequent = np.argsort(-images, kind="stable")[:CANDIDATES]
    central = np.argsort(-centrality, kind="stable")[:CANDIDATES]

    length = np.bincount(report_of, weights=count_in * (words[gram] == 2), minlength=len(reports))
    best, best_total = "", -1.0
    for candidate in np.union1d(frequent, central):
        penalty = np.exp(-((length - length[candidate]) ** 2) / (2 * CIDER_SIGMA**2)) * images
        total = 0.0  # CIDEr up to a factor that all candidates share
        for own in np.flatnonzero(report_of == candidate):
            same = slice(first[gram[own]], first[gram[own] + 1])
            # min(c_g, i_g) i_g / (|c| |i|), with c_g = count idf: the idf falls out of the minimum.
            clipped = unit[own] * np.minimum(1.0, count_in[same] / count_in[own]) * unit[same]
            total += clipped @ penalty[report_of[same]]
        if total > best_total:
            best, best_total = reports[candidate], total
    return best


def _ngrams(words: list[str]) -> Counter[tuple[str, ...]]:
    return Counter(
        tuple(words[start : start + n])
        for n in range(1, CIDER_N + 1)
        for start in range(len(words) - n + 1)
    )


def nearest(train: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The training image most like each image: the least Euclidean distance of their block means.

    An image is reduced to at most 32 x 32 block means, which are then given zero mean and unit
    variance (an image of one grey stays zero). Of equally near ones, the first is chosen.

    Args:
        train: uint8 [n, H, W]; may be memory-mapped, ``CHUNK`` images are read at a time.
        images: uint8 [m, H, W]; takes 8 KB of memory each.

    Returns:
        int64 [m]: indices into ``train``.

    Raises:
        ValueError: ``train`` is empty, or the images are not of one size.
    """
    if not len(train):
        raise ValueError("the nearest training image needs training images, got none")
    if train.shape[1:] != images.shape[1:]:
        raise ValueError(
            f"images to compare must be of one size, got {list(train.shape[1:])} "
            f"in training and {list(images.shape[1:])}"
        )
    starts = range(0, max(len(images), 1), CHUNK)
    queries = np.concatenate([_block_means(images[start : start + CHUNK]) for start in starts])
    nearest_index = np.zeros(len(images), dtype=np.int64)
    nearest_distance = np.full(len(images), np.inf)
    for start in range(0, len(train), CHUNK):
        keys = _block_means(train[start : start + CHUNK])
        squares = (queries**2).sum(axis=1)[:, None] + (keys**2).sum(axis=1)
        # Rounded, because a matrix product of equal images need not be equal in the last digits.
        distance = np.round(squares - 2 * queries @ keys.T, 6)
        index = distance.argmin(axis=1)
        least = distance.min(axis=1)
        closer = least < nearest_distance
        nearest_index[closer] = start + index[closer]
        nearest_distance[closer] = least[closer]
    return nearest_index


def _block_means(images: np.ndarray) -> np.ndarray:
    """Standardised block means of uint8 images [n, H, W]: float64 [n, min(32, H) min(32, W)]."""
    height, width = images.shape[1:]
    rows = np.arange(min(GRID, height)) * height // min(GRID, height)
    columns = np.arange(min(GRID, width)) * width // min(GRID, width)
    sums = np.add.reduceat(images, columns, axis=2, dtype=np.int64)
    sums = np.add.reduceat(sums, rows, axis=1)
    pixels = np.outer(np.diff(rows, append=height), np.diff(columns, append=width))
    means = (sums / pixels).reshape(len(images), pixels.size)
    means -= means.mean(axis=1, keepdims=True)
    deviation = means.std(axis=1, keepdims=True)
    return means / np.where(deviation > 1e-6, deviation, np.inf)
