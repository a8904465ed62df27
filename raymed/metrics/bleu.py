"""BLEU-1 to BLEU-4 of generated reports, as pycocoevalcap computes them.

One reference and one hypothesis per image, lower-case words separated by spaces, so no tokenizer is
needed. BLEU is of the corpus, of the n-grams of all reports together. An empty hypothesis scores 0.
"""

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import BleuScorer, cook_refs, cook_test

from raymed.metrics.scoring import PerImage, Predictions
from raymed.progress import track

LONGEST = 4
"""BLEU counts n-grams of 1 to 4 words."""


def measure(predictions: Predictions) -> PerImage:
    """The words of each report and reference, and its n-grams: how many, and how many correct."""
    references, hypotheses = predictions.pairs()
    counts = np.empty((len(references), 2 + 2 * LONGEST), np.int32)
    pairs = zip(references, hypotheses, strict=True)
    for image, (truth, text) in enumerate(track(pairs, "computing BLEU", len(references))):
        found = cook_test(text, cook_refs([truth]))
        counts[image, :2] = found["testlen"], found["reflen"][0]
        counts[image, 2:] = found["guess"] + found["correct"]
    return PerImage(counts, _scores)


def _scores(sums: np.ndarray, _: np.ndarray) -> dict[str, np.ndarray]:
    scorer = BleuScorer()
    # pycocoevalcap is given each row of sums as if it were one image's counts.
    scorer.ctest = [
        {
            "testlen": row[0],
            "reflen": [row[1]],
            "guess": row[2 : 2 + LONGEST],
            "correct": row[2 + LONGEST :],
        }
        for row in sums.tolist()
    ]
    _, bleu = scorer.compute_score(option="closest")
    return {f"bleu_{n}": np.array(values) for n, values in enumerate(bleu, start=1)}
