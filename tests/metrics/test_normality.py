import math

from raymed.metrics.normality import describes_normality, normality_share


def test_share_counts_the_four_words_as_words():
    describing = ["no pleural effusion", "heart size normal", "lungs are clear", "stable nodule no"]
    other = ["abnormal nodule", "nodule noted", "clearly enlarged", "unstable", "heart is enlarged"]
    assert all(map(describes_normality, describing))
    assert not any(map(describes_normality, other))
    assert normality_share(describing) == 1
    assert normality_share(other) == 0
    assert normality_share(iter(describing + other)) == 4 / 9


def test_an_empty_sentence_counts_and_no_sentence_gives_no_share():
    assert normality_share(["", "no effusion"]) == 0.5
    assert math.isnan(normality_share([]))
