"""Intervals and p-values against corpora that are put together and scored one by one."""

import random
import tracemalloc
from statistics import NormalDist

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from raymed.metrics import bleu, cider, normality, resampling, rouge, tags
from raymed.metrics.resampling import (
    StudySums,
    bootstrap,
    exchange,
    exchanges,
    intervals,
    p_value,
    resamples,
    study_numbers,
)
from raymed.metrics.scoring import PerImage, Predictions

WORDS = (
    *["the", "heart", "is", "normal", "in", "size", "no", "effusion"],
    *["small", "left", "nodule", "lungs"],
)
STUDIES = [0, 1, 1, 2, 3, 4, 4, 4, 5, 6, 0, 7]


def texts(seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 9))) for _ in STUDIES]


TRUTH, ONE, OTHER = texts(0), texts(1), texts(2)
TAGS = [["normal"] if n % 3 else [] for n in range(len(STUDIES))]
RANKED = [["mass", "normal"] if n % 2 else ["mass"] for n in range(len(STUDIES))]


def predictions(reports: list[str]) -> Predictions:
    return Predictions(TRUTH, reports, [[each] for each in reports], TAGS, RANKED)


def measured(reports: list[str]) -> list[PerImage]:
    modules = (bleu, rouge, cider, normality, tags)
    return [module.measure(predictions(reports)) for module in modules]


def by_hand(images: list[int], reports: list[str]) -> dict[str, float]:
    """The scores of some images, each as often as it is listed."""
    truth = {n: [TRUTH[image]] for n, image in enumerate(images)}
    written = {n: [reports[image]] for n, image in enumerate(images)}
    whole = {n: [text] for n, text in enumerate(TRUTH)}
    of_all = Cider().compute_score(whole, {n: [text] for n, text in enumerate(reports)})[1]
    scores = dict(
        zip(
            ("bleu_1", "bleu_2", "bleu_3", "bleu_4"),
            Bleu(4).compute_score(truth, written, verbose=0)[0],
            strict=True,
        )
    )
    scores["rouge_l"] = Rouge().compute_score(truth, written)[0]
    scores["cider"] = sum(of_all[image] for image in images) / len(images)
    plain = {"no", "normal", "clear", "stable"}
    scores["normality"] = sum(bool(plain & set(reports[i].split())) for i in images) / len(images)
    tagged = [i for i in images if TAGS[i]]
    hits = [bool(set(TAGS[i]) & set(RANKED[i][:5])) for i in tagged]
    scores["recall_5"] = sum(hits) / len(tagged) if tagged else float("nan")
    return scores


def in_order(weights: np.ndarray) -> list[int]:
    """The images of the studies, each as often as its study is drawn."""
    return [i for i, study in enumerate(STUDIES) for _ in range(round(weights[study]))]


@pytest.fixture
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "RESAMPLES", 30)
    monkeypatch.setattr(resampling, "SHUFFLES", 25)
    # Eight studies in three parts.
    monkeypatch.setattr(resampling, "CHUNK", 3)


@pytest.mark.usefixtures("_few")
def test_intervals_are_the_percentiles_of_corpora_drawn_by_study() -> None:
    found = intervals(measured(ONE), np.array(STUDIES))
    drawn = np.hstack(list(resamples(8)))
    scored = [by_hand(in_order(weights), ONE) for weights in drawn]
    for key in scored[0]:
        values = [scores[key] for scores in scored if scores[key] == scores[key]]
        expected = np.percentile(values, [2.5, 97.5])
        assert found[key] == pytest.approx(expected, abs=1e-9), key
    low, high = found["bleu_1"]
    assert low < high


@pytest.mark.usefixtures("_few")
def test_exchanges_give_the_scores_of_exchanged_reports() -> None:
    sums = [StudySums(measured(reports), np.array(STUDIES)) for reports in (ONE, OTHER)]
    first, second = (sums[0].scores(each) for each in exchange(*sums))
    masks = np.hstack(list(exchanges(8)))
    everything = list(range(len(STUDIES)))
    observed = by_hand(everything, ONE)["bleu_2"] - by_hand(everything, OTHER)["bleu_2"]
    reached = 0
    for number, mask in enumerate(masks):
        chosen = [bool(mask[study]) for study in STUDIES]
        pairs = list(zip(ONE, OTHER, chosen, strict=True))
        mine = by_hand(everything, [b if swap else a for a, b, swap in pairs])
        theirs = by_hand(everything, [a if swap else b for a, b, swap in pairs])
        for key in ("bleu_2", "rouge_l", "cider", "normality"):
            assert first[key][number] == pytest.approx(mine[key], abs=1e-9)
            assert second[key][number] == pytest.approx(theirs[key], abs=1e-9)
        reached += abs(mine["bleu_2"] - theirs["bleu_2"]) >= abs(observed) - 1e-12
    assert p_value(observed, first["bleu_2"] - second["bleu_2"]) == (reached + 1) / (25 + 1)


def test_every_resample_has_as_many_studies_drawn_evenly() -> None:
    drawn = np.hstack(list(resamples(600)))
    assert drawn.shape == (1000, 600)
    assert (drawn.sum(axis=1) == 600).all()
    # Binomial with mean 1; over 1,000 resamples the mean has a deviation of 0.03.
    assert abs(drawn.mean(axis=0) - 1).max() < 0.16
    assert drawn.var() == pytest.approx(1 - 1 / 600, abs=0.01)
    # Studies of one chunk and of two exclude each other equally little.
    assert abs(np.cov(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.15
    assert abs(np.cov(drawn[:, 0], drawn[:, 599])[0, 1]) < 0.15
    assert (drawn == np.hstack(list(resamples(600)))).all()


def test_the_interval_of_a_mean_is_the_textbooks() -> None:
    values = np.random.default_rng(3).normal(5, 2, (900, 1))
    mean = PerImage(values, lambda sums, images: {"mean": sums[:, 0] / images})
    low, high = intervals([mean], np.arange(900))["mean"]
    half = NormalDist().inv_cdf(0.975) * values.std() / 30
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)


def test_systems_share_their_resamples() -> None:
    one = StudySums(measured(ONE), np.array(STUDIES))
    first, second = bootstrap([one, StudySums(measured(ONE), np.array(STUDIES))])
    assert (first == second).all()


def test_p_values_are_never_0_and_leave_out_what_is_undefined() -> None:
    assert p_value(0.5, np.zeros(99)) == 1 / 100
    assert p_value(-0.5, [0.5, -0.6, 0.4, float("nan")]) == 3 / 4
    assert p_value(0.0, np.zeros(9)) == 1
    assert np.isnan(p_value(float("nan"), [1.0]))
    assert np.isnan(p_value(1.0, [float("nan")]))


def test_studies_are_numbered_by_name() -> None:
    one, two, three = study_numbers(["a", "b", "a"], 3)
    assert one == three != two
    assert study_numbers(["b"], 1) == [two]


def test_memory_hardly_grows_with_the_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "CHUNK", 16)
    monkeypatch.setattr(resampling, "RESAMPLES", 20)

    def peak(count: int) -> int:
        mean = PerImage(
            np.zeros((count, 1), np.int8), lambda sums, images: {"mean": sums[:, 0] / images}
        )
        tracemalloc.start()
        intervals([mean], np.arange(count))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(100)
    assert (peak(8000) - peak(4000)) / 4000 < 60
