"""BLEU-1 to BLEU-4 and ROUGE-L of generated reports, as pycocoevalcap computes them.

One reference and one hypothesis per image, lower-case words separated by spaces, so no tokenizer is
needed. An empty hypothesis scores 0.
"""

from array import array

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import BleuScorer, cook_refs, cook_test
from pycocoevalcap.rouge.rouge import Rouge

from raymed.metrics.scoring import Predictions, Scores
from raymed.progress import track

LONGEST = 4
"""BLEU counts n-grams of 1 to 4 words."""


def score(predictions: Predictions) -> Scores:
    """BLEU is of the corpus, of the n-grams of all reports together; ROUGE-L a mean over images."""
    references, hypotheses = predictions.pairs()
    rouge, rouge_l = Rouge(), array("d")
    hypothesis_words, reference_words = 0, 0
    guessed, correct = [0] * LONGEST, [0] * LONGEST
    pairs = zip(references, hypotheses, strict=True)
    for reference, hypothesis in track(pairs, "computing BLEU and ROUGE-L", len(references)):
        # With single spaces: pycocoevalcap's ROUGE takes a double one for an empty word.
        truth, text = " ".join(reference.split()), " ".join(hypothesis.split())
        rouge_l.append(rouge.calc_score([text], [truth]))
        counts = cook_test(text, cook_refs([truth]))
        hypothesis_words += counts["testlen"]
        reference_words += counts["reflen"][0]
        for n in range(LONGEST):
            guessed[n] += counts["guess"][n]
            correct[n] += counts["correct"][n]
    # pycocoevalcap is given the sums over all images as if they were one image's counts.
    corpus = BleuScorer()
    corpus.ctest = [
        {
            "testlen": hypothesis_words,
            "reflen": [reference_words],
            "guess": guessed,
            "correct": correct,
        }
    ]
    bleu, _ = corpus.compute_score(option="closest")
    by_key = {f"bleu_{n}": value for n, value in enumerate(bleu, start=1)}
    return {**by_key, "rouge_l": float(np.mean(rouge_l))}
