"""How many different reports were written."""

from raymed.metrics.ngrams import distinct
from raymed.metrics.scoring import Predictions, Scores


def score(predictions: Predictions) -> Scores:
    """The number of different reports; a model that writes one report for all images has 1."""
    assert predictions.reports is not None
    return {"distinct": distinct(predictions.reports)}
