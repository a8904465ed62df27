"""Findings named rightly: precision, recall and F1 of the findings that reports name.

It applies where the findings of every image are known exactly by their names, with side, as on the
phantom (``left pleural effusion``). A report with the wrong side differs from the right one in a
single word, which BLEU and CIDEr hardly notice; here it is one false and one missed finding.
"""

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from raymed.metrics.normality import describes_normality
from raymed.metrics.scoring import PerImage, Predictions, ratio


def named_findings(sentence: str, names: Iterable[str]) -> set[str]:
    """The findings that a sentence states as present.

    They are those whose name occurs in it word by word, unless the sentence describes normality (it
    has ``no``, ``normal``, ``clear`` or ``stable``).

    Args:
        sentence: Lower-case words separated by spaces.
        names: Names of findings, likewise.
    """
    if describes_normality(sentence):
        return set()
    padded = f" {sentence} "
    return {name for name in names if f" {name} " in padded}


def measure(predictions: Predictions) -> PerImage:
    """Count the findings of each image that are named (TP), falsely named (FP) and missed (FN).

    Over all images, P = TP / (TP + FP), R = TP / (TP + FN) and F1 = 2 TP / (2 TP + FP + FN). A name
    that is no finding of any image in the split is not recognised.
    """
    assert predictions.findings is not None
    assert predictions.sentences is not None
    names = {name for present in predictions.findings for name in present}
    counts = np.empty((len(predictions.findings), 3), np.int32)
    reports = zip(predictions.sentences, predictions.findings, strict=True)
    for image, (sentences, present) in enumerate(reports):
        counts[image] = _compare(sentences, set(present), names)
    return PerImage(counts, _scores)


def _compare(
    sentences: Sequence[str], present: set[str], names: Collection[str]
) -> tuple[int, int, int]:
    """The numbers of true positives, false positives and false negatives of one report."""
    named = {name for sentence in sentences for name in named_findings(sentence, names)}
    return len(named & present), len(named - present), len(present - named)


def _scores(sums: np.ndarray, _: np.ndarray) -> dict[str, np.ndarray]:
    named, false, missed = sums.T
    return {
        "finding_precision": ratio(named, named + false),
        "finding_recall": ratio(named, named + missed),
        "finding_f1": ratio(2 * named, 2 * named + false + missed),
    }
