"""ROUGE-L of generated reports, the mean over images, as pycocoevalcap computes it.

One reference and one hypothesis per image, lower-case words separated by spaces, so no tokenizer is
needed. An empty hypothesis scores 0.
"""

import numpy as np
from pycocoevalcap.rouge.rouge import Rouge

from raymed.metrics.scoring import PerImage, Predictions, ratio
from raymed.progress import track


def measure(predictions: Predictions) -> PerImage:
    """The ROUGE-L of each generated report."""
    references, hypotheses = predictions.pairs()
    rouge, pairs = Rouge(), zip(references, hypotheses, strict=True)
    # With single spaces: pycocoevalcap's ROUGE takes a double one for an empty word.
    scores = (
        rouge.calc_score([" ".join(text.split())], [" ".join(truth.split())])
        for truth, text in track(pairs, "computing ROUGE-L", len(references))
    )
    counts = np.fromiter(scores, np.float64, len(references))
    return PerImage(counts[:, None], lambda sums, images: {"rouge_l": ratio(sums[:, 0], images)})
