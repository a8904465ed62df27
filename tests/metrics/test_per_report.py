"""Scores of single reports: as pycocoevalcap gives them, with the split's score as their mean."""

import random

import numpy as np
import pytest
from pycocoevalcap.cider.cider import Cider

from raymed.metrics.cider import cider
from raymed.metrics.per_report import PER_REPORT
from raymed.metrics.table import objective_metrics

WORDS = ["the", "lungs", "are", "clear", "heart", "large", "no", "effusion", "nodule", "left"]


def test_cider_is_pycocoevalcaps():
    chance = random.Random(4)
    # More than are counted at a time.
    texts = [[" ".join(chance.choices(WORDS, k=9)) for _ in range(700)] for _ in range(2)]
    columns = dict(zip(("reference", "report"), texts, strict=True))
    found = PER_REPORT["cider"](columns.__getitem__)
    mean, each = Cider().compute_score(
        {i: [text] for i, text in enumerate(texts[0])},
        {i: [text] for i, text in enumerate(texts[1])},
    )
    np.testing.assert_allclose(found, each, rtol=1e-9)
    assert found.mean() == pytest.approx(mean) == pytest.approx(cider(*texts))


def test_recall_counts_tags_among_the_first_five():
    columns = {
        "tags": [["a", "b"], [], ["a", "a"], ["f"]],
        "predicted_tags": [["a", "c", "d", "e", "f", "b"], ["a"], ["a"], list("abcdef")],
    }
    found = PER_REPORT["recall_5"](columns.__getitem__)
    np.testing.assert_array_equal(found, [0.5, np.nan, 1, 0])


def test_every_score_that_a_sweep_can_search_for_is_known_by_report():
    assert {metric.key for metric in objective_metrics() if metric.module} == {*PER_REPORT}
