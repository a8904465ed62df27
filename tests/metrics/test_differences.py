"""Intervals of paired differences beside plain loops, Student's t, and simulated experiments."""

import math
import random
import statistics

import numpy as np
import pytest

from raymed.metrics import differences as module
from raymed.metrics.differences import paired_difference

STUDENT = {2: 12.706, 3: 4.303, 5: 2.776}
"""The 97.5 % quantile of Student's distribution by the number of seeds, from a printed table."""


def test_where_seeds_agree_it_is_the_percentile_bootstrap_over_studies():
    chance = random.Random(1)
    studies = [study for study in range(40) for _ in range(chance.randint(1, 3))]
    effects = [chance.gauss(0.3, 1) for _ in range(40)]
    gaps = [effects[study] + chance.gauss(0, 0.2) for study in studies]
    means = []
    for _ in range(4000):
        drawn = []
        for _ in range(40):
            chosen = chance.randrange(40)
            drawn += [gap for gap, study in zip(gaps, studies, strict=True) if study == chosen]
        means.append(statistics.fmean(drawn))
    means.sort()
    found = paired_difference(np.array([gaps] * 3), np.array(studies))
    assert found.mean == pytest.approx(statistics.fmean(gaps))
    assert found.low == pytest.approx(means[100], abs=0.03)
    assert found.high == pytest.approx(means[3900], abs=0.03)


@pytest.mark.parametrize("seeds", STUDENT)
def test_where_studies_agree_it_is_students_interval_over_seeds(seeds, monkeypatch):
    monkeypatch.setattr(module, "DRAWS", 100_000)
    chance = random.Random(seeds)
    of_seed = [chance.gauss(0.1, 0.05) for _ in range(seeds)]
    found = paired_difference(np.array([[gap] * 6 for gap in of_seed]), np.arange(6))
    half = STUDENT[seeds] * statistics.stdev(of_seed) / math.sqrt(seeds)
    assert found.mean == pytest.approx(statistics.fmean(of_seed))
    assert found.high - found.mean == pytest.approx(half, rel=0.05)
    assert found.mean - found.low == pytest.approx(half, rel=0.05)


@pytest.mark.parametrize(("of_seeds", "of_studies"), [(0, 1), (0.5, 0.5), (0.5, 3)])
def test_it_covers_the_true_difference_as_often_as_it_claims(of_seeds, of_studies, monkeypatch):
    monkeypatch.setattr(module, "DRAWS", 400)
    chance = np.random.default_rng(5)
    experiments, covered = 400, 0
    studies = np.repeat(np.arange(60), 2)
    for _ in range(experiments):
        seeds = chance.normal(0, of_seeds, (3, 1))
        study = chance.normal(0, of_studies, 60)[studies]
        found = paired_difference(seeds + study + chance.normal(0, 1, (3, 120)), studies)
        covered += found.low <= 0 <= found.high
    # Twice the standard deviation of a share of 0.95 of 400 is 0.022.
    assert covered / experiments > 0.95 - 0.022


def test_images_of_one_study_are_not_independent():
    gaps = np.random.default_rng(2).normal(0, 1, (1, 30)).repeat(2, axis=0)
    once = paired_difference(gaps, np.arange(30))
    twice = gaps.repeat(2, axis=1)
    together = paired_difference(twice, np.arange(30).repeat(2))
    assert together == once
    apart = paired_difference(twice, np.arange(60))
    assert apart.high - apart.low < 0.8 * (once.high - once.low)


def test_equal_reports_are_not_told_apart_and_clear_differences_are():
    assert not paired_difference(np.zeros((3, 10)), np.arange(10)).excludes_zero
    clear = np.random.default_rng(3).normal(1, 0.1, (3, 10))
    for sign in (1, -1):
        found = paired_difference(sign * clear, np.arange(10))
        assert found.excludes_zero
        assert found.low < found.mean < found.high


@pytest.mark.parametrize(("seeds", "studies"), [(1, 5), (3, 1)])
def test_one_seed_or_one_study_has_no_interval(seeds, studies):
    with pytest.raises(ValueError, match=f"two studies, got {seeds} and {studies}"):
        paired_difference(np.zeros((seeds, 5)), np.arange(5) % studies)
