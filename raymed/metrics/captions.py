"""BLEU, METEOR, ROUGE-L and CIDEr of generated reports, as pycocoevalcap computes them.

Texts are lower-case words separated by spaces, one reference and one hypothesis per image, so no
tokenizer is needed. Document frequencies come from the references given: score a whole split at
once. Texts are gone through a few hundred at a time, so a split of any size can be.
"""

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import BleuScorer, cook_refs, cook_test
from pycocoevalcap.rouge.rouge import Rouge

from raymed.metrics.meteor import MeteorUnavailable, meteor
from raymed.metrics.ngrams import LONGEST, Frequencies, NGrams, Texts, chunks, distinct
from raymed.progress import track

SIGMA = 6.0
"""Width of CIDEr-D's Gaussian penalty on a difference in length."""


@dataclass(frozen=True)
class CaptionScores:
    """The seven scores of the paper's Table 1 over one split, and how varied the reports are."""

    bleu_1: float
    bleu_2: float
    bleu_3: float
    bleu_4: float
    meteor: float | None
    """None where Java cannot run; never another measure in its place."""
    rouge_l: float
    cider: float
    """CIDEr-D times 10, as pycocoevalcap gives it: from 0 to 10."""
    distinct: int
    """Number of different hypotheses."""
    meteor_missing: str | None = None
    """Why METEOR is None, in words."""


def cider(references: Texts, hypotheses: Texts) -> float:
    """CIDEr-D times 10 over one split, from 0 to 10; quick enough for every epoch.

    Of a single pair it is 0, since a word that all documents have weighs nothing.

    Raises:
        ValueError: there is no pair, a number of hypotheses other than that of references, or a
            reference without words.
    """
    return ciders(references, [hypotheses])[0]


def ciders(references: Texts, many: Sequence[Texts]) -> list[float]:
    """`cider` of several sets of hypotheses against the same references.

    For the variants of one generation: the references are weighed once, and a text that several
    sets have for an image is scored once.

    Raises:
        ValueError: as `cider`.
    """
    for hypotheses in many:
        _check(references, hypotheses)
    if not many:
        return []
    ngrams = NGrams()
    frequencies = Frequencies(ngrams, references)
    sums: list[list[float]] = [[] for _ in many]
    texts = zip(references, *many, strict=True)
    for rows in chunks(track(texts, "computing CIDEr", len(references))):
        pairs: dict[tuple[int, str], int] = {}
        places = [
            [pairs.setdefault((i, text), len(pairs)) for i, text in enumerate(column)]
            for column in list(zip(*rows, strict=True))[1:]
        ]
        scores = _cider_d(ngrams, frequencies, [row[0] for row in rows], list(pairs))
        for own, chosen in zip(sums, places, strict=True):
            own.append(math.fsum(scores[chosen]))
    return [math.fsum(own) / len(references) for own in sums]


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
        ngrams: that the frequencies are of.
        frequencies: of the n-grams of all references.
        references: some of them.
        pairs: hypotheses, each with the place of its reference among these.

    Returns:
        float64 [pairs].
    """
    images = np.array([image for image, _ in pairs])
    truth = ngrams.count(references)
    written = ngrams.count(text for _, text in pairs)
    weight = truth.times * frequencies.look_up(truth.key)[1]
    own = written.times * frequencies.look_up(written.key)[1]

    # Each n-gram of a hypothesis among those of its reference, which are sorted by text and key.
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


def caption_scores(
    references: Texts, hypotheses: Texts, lexicon: Iterable[str] = ()
) -> CaptionScores:
    """All caption scores over one split. An empty hypothesis scores 0.

    Args:
        references: the full preprocessed report of each image.
        hypotheses: the generated report of each image, in the same order.
        lexicon: further texts; scorings that are given the same one share METEOR's start-up work.

    Raises:
        ValueError: there is no pair, a number of hypotheses other than that of references, or a
            reference without words.
    """
    _check(references, hypotheses)
    rouge, rouge_l = Rouge(), array("d")
    written, true = 0, 0
    guess, correct = [0] * 4, [0] * 4
    texts = zip(references, hypotheses, strict=True)
    for reference, hypothesis in track(texts, "computing BLEU and ROUGE-L", len(references)):
        # Spaced by single spaces: of two, ROUGE makes an empty word.
        truth, text = " ".join(reference.split()), " ".join(hypothesis.split())
        rouge_l.append(rouge.calc_score([text], [truth]))
        counts = cook_test(text, cook_refs([truth]))
        written += counts["testlen"]
        true += counts["reflen"][0]
        for n in range(4):
            guess[n] += counts["guess"][n]
            correct[n] += counts["correct"][n]
    # BLEU is of the corpus: of the sums over all images, as if those were one image's.
    corpus = BleuScorer()
    corpus.ctest = [{"testlen": written, "reflen": [true], "guess": guess, "correct": correct}]
    bleu, _ = corpus.compute_score(option="closest")
    meteor_score, meteor_missing = None, None
    try:
        meteor_score = meteor(references, hypotheses, lexicon=lexicon)
    except MeteorUnavailable as reason:
        meteor_missing = str(reason)
    return CaptionScores(
        bleu_1=bleu[0],
        bleu_2=bleu[1],
        bleu_3=bleu[2],
        bleu_4=bleu[3],
        meteor=meteor_score,
        rouge_l=float(np.mean(rouge_l)),
        cider=cider(references, hypotheses),
        distinct=distinct(hypotheses),
        meteor_missing=meteor_missing,
    )


def _check(references: Texts, hypotheses: Texts) -> None:
    if len(references) != len(hypotheses):
        raise ValueError(
            f"one hypothesis per reference is scored, got {len(hypotheses)} hypotheses "
            f"for {len(references)} references"
        )
    if not len(references):
        raise ValueError("there is nothing to score: no reference and no hypothesis")
    for image, text in enumerate(references):
        if not text.split():
            raise ValueError(f"a reference must have words, number {image} (from 0) has none")
