"""Findings named in reports, against the phantom's own and against counting by hand."""

import numpy as np
import pytest

from raymed.data.sources.phantom_reports import (
    NORMAL_TAG,
    choose_patient,
    write_report,
    write_tags,
)
from raymed.data.text import preprocess
from raymed.metrics.findings import measure, named_findings
from raymed.metrics.scoring import Predictions


def predictions(reports: list[list[str]], findings: list[list[str]]) -> Predictions:
    texts = [" ".join(sentences) for sentences in reports]
    return Predictions(texts, texts, reports, [[]] * len(texts), None, findings=findings)


def test_reports_of_the_phantom_name_all_their_findings_and_no_others() -> None:
    patients = [choose_patient(np.random.default_rng([7, index])) for index in range(300)]
    findings = [[tag for tag in write_tags(one) if tag != NORMAL_TAG] for one in patients]
    reports = [preprocess(write_report(one)).sentences for one in patients]
    assert sum(map(len, findings)) > 400
    scores = measure(predictions(reports, findings)).total()
    assert scores == {"finding_precision": 1, "finding_recall": 1, "finding_f1": 1}

    # With every side exchanged, what has no side is still named rightly.
    exchanged = {"left": "right", "right": "left"}
    turned = [
        [" ".join(exchanged.get(word, word) for word in sentence.split()) for sentence in report]
        for report in reports
    ]
    sided = [sum(not exchanged.keys().isdisjoint(name.split()) for name in f) for f in findings]
    both = [
        # A finding on both sides stays right when they are exchanged.
        sum(" ".join(exchanged.get(w, w) for w in name.split()) in each for name in each)
        for each in findings
    ]
    right, known = sum(both), sum(map(len, findings))
    assert sum(sided) > 200
    scores = measure(predictions(turned, findings)).total()
    assert scores["finding_recall"] == pytest.approx(right / known)
    assert scores["finding_precision"] == pytest.approx(right / known)


def test_counts_are_summed_over_all_reports() -> None:
    reports = [
        ["a small left pleural effusion blunts the angle", "no cardiomegaly"],
        ["there is marked cardiomegaly", "there is moderate cardiomegaly"],
        ["the lungs are clear"],
    ]
    findings = [["right pleural effusion", "cardiomegaly"], ["cardiomegaly"], []]
    # The left effusion is not among the findings of these images, so it is not recognised.
    found = measure(predictions(reports, findings))
    assert found.counts.tolist() == [[0, 0, 2], [1, 0, 0], [0, 0, 0]]
    findings[2] = ["left pleural effusion"]
    found = measure(predictions(reports, findings))
    assert found.counts.tolist() == [[0, 1, 2], [1, 0, 0], [0, 0, 1]]
    assert found.total() == {
        "finding_precision": 1 / 2,
        "finding_recall": 1 / 4,
        "finding_f1": pytest.approx(2 * (1 / 2) * (1 / 4) / (1 / 2 + 1 / 4)),
    }


def test_without_findings_the_shares_are_undefined() -> None:
    scores = measure(predictions([["the lungs are clear"]], [[]])).total()
    assert set(scores.values()) == {None}


def test_names_match_whole_words_of_sentences_that_describe_no_normality() -> None:
    names = {"lung nodule", "cardiomegaly"}
    assert named_findings("a lung nodule and cardiomegaly", names) == names
    assert named_findings("a lung nodules", names) == set()
    assert named_findings("no lung nodule", names) == set()
    assert named_findings("stable cardiomegaly", names) == set()
