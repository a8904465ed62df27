import math

import numpy as np
import pytest

from raymed.metrics.tags import recall_at


@pytest.mark.parametrize("k", [1, 5, 10, 20])
def test_recall_equals_counting_tag_by_tag(k):
    random = np.random.default_rng(k)
    ranked = np.array([random.permutation(30) for _ in range(40)])
    truth = [set(random.choice(30, size=random.integers(0, 6), replace=False)) for _ in range(40)]
    recalls = []
    for image in range(40):
        if len(truth[image]) == 0:
            continue
        hits = 0
        for place in range(k):
            for tag in truth[image]:
                hits += int(ranked[image][place] == tag)
        recalls.append(hits / len(truth[image]))
    assert len(recalls) < 40  # images without tags are among them
    assert recall_at(k, ranked, truth) == pytest.approx(sum(recalls) / len(recalls), abs=1e-12)


def test_each_image_counts_the_same():
    ranked = np.array([[0, 1], [2, 3]])
    assert recall_at(1, ranked, [{0}, {0, 1, 2, 3}]) == (1 + 1 / 4) / 2


def test_a_tag_outside_the_vocabulary_counts_as_missed():
    ranked = np.array([[4, -1, -2]])
    assert recall_at(3, ranked, [{4, -1, -2}]) == pytest.approx(1 / 3)


def test_a_vocabulary_of_fewer_than_k_tags_counts_whole():
    assert recall_at(20, np.array([[1, 0]]), [{0, -1}]) == 0.5


def test_recall_without_tags_is_nan():
    assert math.isnan(recall_at(5, np.array([[1, 0], [0, 1]]), [set(), set()]))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        recall_at(0, np.array([[1]]), [{1}])
    with pytest.raises(ValueError, match=r"2 images of truth, got shape \[1, 1\]"):
        recall_at(1, np.array([[1]]), [{1}, {1}])
