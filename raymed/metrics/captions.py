"""BLEU, METEOR, ROUGE-L and CIDEr of generated reports, as pycocoevalcap computes them.

Texts are lower-case words separated by spaces, one reference and one hypothesis per image, so no
tokenizer is needed. Document frequencies come from the references given: score a whole split at
once.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from raymed.metrics.meteor import MeteorUnavailable, meteor


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


def cider(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """CIDEr-D times 10 over one split, from 0 to 10; quick enough for every epoch.

    Of a single pair it is 0, since a word that all documents have weighs nothing.

    Raises:
        ValueError: there is no pair, a number of hypotheses other than that of references, or a
            reference without words.
    """
    return _cider(*_by_image(references, hypotheses))


def ciders(references: Sequence[str], many: Sequence[Sequence[str]]) -> list[float]:
    """`cider` of several sets of hypotheses against the same references.

    For the variants of one generation: the references are weighed once, and a text that several
    sets have for an image is scored once.

    Raises:
        ValueError: as `cider`.
    """
    checked = [_by_image(references, hypotheses) for hypotheses in many]
    if not checked:
        return []
    score = _CiderD(_texts(checked[0][0]))
    known: dict[tuple[int, str], float] = {}
    means = []
    for _, generated in checked:
        pairs = list(enumerate(_texts(generated)))
        known |= {pair: score(*pair) for pair in set(pairs) - known.keys()}
        means.append(math.fsum(known[pair] for pair in pairs) / len(pairs))
    return means


def caption_scores(
    references: Sequence[str], hypotheses: Sequence[str], lexicon: Iterable[str] = ()
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
    truth, generated = _by_image(references, hypotheses)
    bleu, _ = Bleu(4).compute_score(truth, generated, verbose=0)
    rouge_l, _ = Rouge().compute_score(truth, generated)
    meteor_score, meteor_missing = None, None
    try:
        meteor_score = meteor(_texts(truth), _texts(generated), lexicon=lexicon)
    except MeteorUnavailable as reason:
        meteor_missing = str(reason)
    return CaptionScores(
        bleu_1=bleu[0],
        bleu_2=bleu[1],
        bleu_3=bleu[2],
        bleu_4=bleu[3],
        meteor=meteor_score,
        rouge_l=float(rouge_l),
        cider=_cider(truth, generated),
        distinct=len(set(_texts(generated))),
        meteor_missing=meteor_missing,
    )


TextsByImage = dict[int, list[str]]
"""What pycocoevalcap takes: for each image, a list that holds one text."""


def _by_image(
    references: Sequence[str], hypotheses: Sequence[str]
) -> tuple[TextsByImage, TextsByImage]:
    """Both checked, and spaced by single spaces (of two, ROUGE makes an empty word)."""
    if len(references) != len(hypotheses):
        raise ValueError(
            f"one hypothesis per reference is scored, got {len(hypotheses)} hypotheses "
            f"for {len(references)} references"
        )
    if not references:
        raise ValueError("there is nothing to score: no reference and no hypothesis")
    truth = {image: [" ".join(text.split())] for image, text in enumerate(references)}
    generated = {image: [" ".join(text.split())] for image, text in enumerate(hypotheses)}
    empty = [image for image, text in enumerate(_texts(truth)) if not text]
    if empty:
        raise ValueError(f"a reference must have words, number {empty[0]} (from 0) has none")
    return truth, generated


def _texts(by_image: TextsByImage) -> list[str]:
    return [text for (text,) in by_image.values()]


def _cider(truth: TextsByImage, generated: TextsByImage) -> float:
    score, _ = Cider().compute_score(truth, generated)
    return float(score)


class _CiderD:
    """CIDEr-D times 10 of single texts (Vedantam, Zitnick and Parikh 2015, section 5).

    The mean over n = 1 ... 4 of the cosine between the TF-IDF vectors of n-grams, the hypothesis'
    clipped to the reference's, times exp(-(difference in length)^2 / (2 * 6^2)).
    """

    LONGEST, SIGMA = 4, 6.0

    def __init__(self, references: Sequence[str]) -> None:
        counts = [_ngrams(text, self.LONGEST) for text in references]
        documents = Counter(gram for image in counts for gram in image)
        self.unseen = math.log(len(references))
        self.idf = {gram: self.unseen - math.log(n) for gram, n in documents.items()}
        self.lengths = [len(text.split()) for text in references]
        self.truth = [self._weighed(image) for image in counts]
        self.norms = [self._norms(weights) for weights in self.truth]

    def __call__(self, image: int, text: str) -> float:
        weights = self._weighed(_ngrams(text, self.LONGEST))
        norms, truth = self._norms(weights), self.truth[image]
        products = [0.0] * self.LONGEST
        for gram, weight in weights.items():
            known = truth.get(gram, 0.0)
            products[len(gram) - 1] += min(weight, known) * known
        cosines = [
            product / (ours * theirs) if ours and theirs else 0.0
            for product, ours, theirs in zip(products, norms, self.norms[image], strict=True)
        ]
        # pycocoevalcap takes the number of bigrams for the length.
        excess = max(len(text.split()) - 1, 0) - max(self.lengths[image] - 1, 0)
        return 10 * math.exp(-(excess**2) / (2 * self.SIGMA**2)) * sum(cosines) / self.LONGEST

    def _weighed(self, counts: Counter[tuple[str, ...]]) -> dict[tuple[str, ...], float]:
        return {gram: n * self.idf.get(gram, self.unseen) for gram, n in counts.items()}

    def _norms(self, weights: dict[tuple[str, ...], float]) -> list[float]:
        squares = [0.0] * self.LONGEST
        for gram, weight in weights.items():
            squares[len(gram) - 1] += weight * weight
        return [math.sqrt(each) for each in squares]


def _ngrams(text: str, longest: int) -> Counter[tuple[str, ...]]:
    words = text.split()
    return Counter(
        tuple(words[start : start + n])
        for n in range(1, longest + 1)
        for start in range(len(words) - n + 1)
    )
