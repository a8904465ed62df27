"""CIDEr of generated reports, equal to pycocoevalcap's.

Texts are lower-case words separated by spaces, one reference and one hypothesis per image, so no
tokenizer is needed. Document frequencies come from the references given: always score a whole
split at once. Texts are processed a few hundred at a time, so a split may be of any size.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from raymed.metrics.ngrams import LONGEST, Frequencies, NGrams, Texts, chunks
from raymed.metrics.scoring import PerImage, Predictions, check_pairs, ratio
from raymed.progress import track

SIGMA = 6.0
"""Width of CIDEr-D's Gaussian penalty on a difference in length."""


def measure(predictions: Predictions) -> PerImage:
    """The CIDEr of each generated report, with the document frequencies of the whole split."""
    references, reports = predictions.pairs()
    scores = np.concatenate([some for (some,) in _scores(references, [reports])])
    return PerImage(scores[:, None], lambda sums, images: {"cider": ratio(sums[:, 0], images)})


def cider(references: Texts, hypotheses: Texts) -> float:
    """CIDEr-D times 10 over one split, from 0 to 10; fast enough to compute after every epoch.

    For a single pair it is 0, since a word that occurs in every document has no weight.

    Raises:
        ValueError: As `check_pairs`.
    """
    return ciders(references, [hypotheses])[0]


def ciders(references: Texts, many: Sequence[Texts]) -> list[float]:
    """`cider` of several sets of hypotheses against the same references.

    Meant for variants of one generation: the references are weighted once, and a text that several
    sets share for an image is scored once.

    Raises:
        ValueError: As `check_pairs`.
    """
    for hypotheses in many:
        check_pairs(references, hypotheses)
    if not many:
        return []
    sums: list[list[float]] = [[] for _ in many]
    for some in _scores(references, many):
        for own, scores in zip(sums, some, strict=True):
            own.append(math.fsum(scores))
    return [math.fsum(own) / len(references) for own in sums]


def _scores(references: Texts, many: Sequence[Texts]) -> Iterator[list[np.ndarray]]:
    """The scores of some images at a time, float64 [images], for each set of hypotheses."""
    ngrams = NGrams()
    frequencies = Frequencies(ngrams, references)
    texts = zip(references, *many, strict=True)
    for rows in chunks(track(texts, "computing CIDEr", len(references))):
        pairs: dict[tuple[int, str], int] = {}
        places = [
            [pairs.setdefault((i, text), len(pairs)) for i, text in enumerate(column)]
            for column in list(zip(*rows, strict=True))[1:]
        ]
        scores = _cider_d(ngrams, frequencies, [row[0] for row in rows], list(pairs))
        yield [scores[chosen] for chosen in places]


class CiderReward:
    """CIDEr-D times 10 of single reports, with fixed document frequencies: a reward for training.

    Args:
        texts: The texts that document frequencies are counted in, once: the training references.

    Raises:
        UsageError: The disk of the temporary files is full.
    """

    def __init__(self, texts: Texts) -> None:
        self._ngrams = NGrams()
        self._frequencies = Frequencies(self._ngrams, texts)

    def __call__(self, references: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
        """The scores, float64 [n], of n hypotheses, each against its own reference."""
        check_pairs(references, hypotheses)
        return _cider_d(
            self._ngrams, self._frequencies, list(references), list(enumerate(hypotheses))
        )


def _cider_d(
    ngrams: NGrams,
    frequencies: Frequencies,
    references: list[str],
    pairs: Sequence[tuple[int, str]],
) -> np.ndarray:
    """CIDEr-D times 10 of texts (Vedantam, Zitnick and Parikh 2015, section 5).

    The mean over n = 1 ... 4 of the cosine between the TF-IDF vectors of n-grams, the hypothesis'
    clipped to the reference's, times exp(-(difference in length)^2 / (2 * 6^2)).

    Args:
        ngrams: The keys of n-grams that `frequencies` counts.
        frequencies: Document frequencies of the n-grams of all references.
        references: Some of the references.
        pairs: Hypotheses, each with the index of its reference in `references`.

    Returns:
        The scores, float64 [pairs].
    """
    images = np.array([image for image, _ in pairs])
    truth = ngrams.count(references)
    written = ngrams.count(text for _, text in pairs)
    weight = truth.times * frequencies.look_up(truth.key)[1]
    own = written.times * frequencies.look_up(written.key)[1]

    # Look up each n-gram of a hypothesis among its reference's, which are sorted by text and key.
    keys = np.unique(truth.key)
    place = np.searchsorted(keys, written.key)
    place[place == len(keys)] = 0
    listed = truth.text * len(keys) + np.searchsorted(keys, truth.key)
    wanted = images[written.text] * len(keys) + place
    found = np.minimum(np.searchsorted(listed, wanted), len(listed) - 1)
    shared = (listed[found] == wanted) & (truth.key[found] == written.key)
    known = np.where(shared, weight[found], 0.0)

    products = np.bincount(written.part, np.minimum(own, known) * known, len(pairs) * LONGEST)
    norms = written.norms(own, len(pairs))
    theirs = truth.norms(weight, len(references)).reshape(-1, LONGEST)[images].reshape(-1)
    both = norms * theirs
    cosines = np.divide(products, both, out=np.zeros_like(both), where=both > 0)
    excess = written.lengths(len(pairs)) - truth.lengths(len(references))[images]
    penalty: np.ndarray = np.exp(-(excess**2) / (2 * SIGMA**2))
    return 10 * penalty * cosines.reshape(-1, LONGEST).sum(axis=1) / LONGEST
