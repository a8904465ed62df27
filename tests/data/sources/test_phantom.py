from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from raymed.data.sources.phantom import SMALLEST_IMAGE, draw
from raymed.data.sources.phantom_film import Anatomy, render
from raymed.data.sources.phantom_reports import CANDIDATES, choose_abnormality, choose_patient
from raymed.errors import UsageError

ABNORMAL_WORDS = {
    "cardiomegaly": "cardiomegaly",
    "pacemaker": "pacemaker",
    "sternal wires": "sternal wires",
    "pleural effusion": "pleural effusion blunts",
    "pneumothorax": "pneumothorax outlines",
    "hemidiaphragm": "elevated",
    "lung nodule": "lung nodule",
    "calcified granuloma": "calcified granuloma",
    "opacity": "lobe opacity",
}


@pytest.fixture(scope="module")
def examples():
    return list(draw(300, seed=4, image_size=32))


def same(one, other):
    return np.array_equal(one.image, other.image) and replace(one, image=None) == replace(
        other, image=None
    )


def a_patient(rng, *abnormalities):
    return replace(choose_patient(rng), abnormalities=abnormalities)


def test_a_study_depends_on_seed_and_number_alone():
    few = list(draw(3, seed=7, image_size=64))
    many = list(islice(draw(1000, seed=7, image_size=64), 3))
    assert all(same(one, other) for one, other in zip(few, many, strict=True))
    other_seed = list(draw(3, seed=8, image_size=64))
    assert not any(
        np.array_equal(one.image, other.image) for one, other in zip(few, other_seed, strict=True)
    )
    assert [one.image_id for one in few] == [f"phantom-00000{i}" for i in range(3)]


def test_the_size_changes_neither_report_nor_places():
    for small, large in zip(
        draw(40, seed=2, image_size=64), draw(40, seed=2, image_size=224), strict=True
    ):
        assert (small.report, small.tags) == (large.report, large.tags)
        # The large film averaged over 3.5 x 3.5 pixels is the small film, up to its grain.
        edges = (np.arange(224) * 64) // 224
        sums = np.zeros((64, 64))
        np.add.at(sums, (edges[:, None], edges[None, :]), large.image.astype(float))
        count = np.bincount(edges)
        shrunk = sums / np.outer(count, count)
        assert np.corrcoef(shrunk.ravel(), small.image.ravel())[0, 1] > 0.95
        for one, other in zip(small.findings, large.findings, strict=True):
            for side in ("left", "top", "right", "bottom"):
                # Four coarse pixels: where a region ends in a thin tail, the tail fades out.
                assert abs(getattr(one, side) - getattr(other, side)) < 4 / 64


def test_images_and_boxes_are_well_formed(examples):
    for one in examples:
        assert one.image.dtype == np.uint8
        assert one.image.shape == (32, 32)
        assert one.image.std() > 25
        for box in one.findings:
            assert 0 <= box.left < box.right <= 1
            assert 0 <= box.top < box.bottom <= 1


@pytest.mark.parametrize(("kind", "side", "zone"), CANDIDATES)
@pytest.mark.parametrize("image_size", [64, 112])
def test_the_change_that_a_finding_makes_lies_in_its_box(kind, side, zone, image_size):
    for trial in range(6):
        rng = np.random.default_rng([trial, image_size])
        healthy, anatomy = a_patient(rng), Anatomy.sample(rng)
        one = choose_abnormality(kind, side, zone, healthy.inspiration, rng)
        ill = replace(healthy, abnormalities=(one,))
        before, nothing = render(anatomy, healthy, image_size, np.random.default_rng(1))
        after, (box,) = render(anatomy, ill, image_size, np.random.default_rng(1))
        assert nothing == ()
        assert box.tag == one.tag
        change = np.abs(after.astype(float) - before)
        centre = (np.arange(image_size) + 0.5) / image_size
        columns = (centre > box.left) & (centre < box.right)
        rows = (centre > box.top) & (centre < box.bottom)
        inside = change[np.ix_(rows, columns)]
        assert inside.sum() > 0.85 * change.sum()
        # The box is tight: the change reaches to its sides. An enlarged heart's box is the heart.
        if kind != "cardiomegaly":
            for axis, low, high in ((0, box.left, box.right), (1, box.top, box.bottom)):
                reached = centre[(change > 10).any(axis=axis)]
                assert reached.min() < low + 4 / 64
                assert reached.max() > high - 4 / 64
        # A person can see it: several pixels change by a clear step of grey.
        assert (inside > 25).sum() >= 4 * (image_size / 64) ** 2
        # The patient's left is the image's right.
        if side:
            assert ((box.left + box.right) / 2 > 0.5) == (side == "left")


def test_tags_findings_and_sentences_agree(examples):
    for one in examples:
        report = one.report.lower()
        if one.tags == ("normal",):
            assert one.findings == ()
            assert not any(words in report for words in ABNORMAL_WORDS.values())
            continue
        assert "normal" not in one.tags
        assert sorted(one.tags) == sorted(box.tag for box in one.findings)
        assert len(set(one.tags)) == len(one.tags)
        for tag in one.tags:
            assert tag in report
        for kind, words in ABNORMAL_WORDS.items():
            assert (words in report) == any(kind in tag for tag in one.tags)


def test_no_normal_sentence_contradicts_a_finding(examples):
    lung = ("opacity", "nodule", "granuloma", "effusion", "pneumothorax")
    for one in examples:
        report, tags = one.report.lower(), " ".join(one.tags)
        ill = {
            side: any(side in tag and any(word in tag for word in lung) for tag in one.tags)
            for side in ("left", "right")
        }
        assert ("heart is" in report or "heart size" in report) == ("cardiomegaly" not in tags)
        assert ("no pneumothorax" in report) == (
            "effusion" not in tags and "pneumothorax" not in tags
        )
        for side, other in (("left", "right"), ("right", "left")):
            assert (f"the {side} lung is clear" in report) == (ill[other] and not ill[side])
        whole = "lungs are" in report
        assert whole == (not any(ill.values()))


def test_shares_and_variety():
    patients = [choose_patient(np.random.default_rng([9, i])) for i in range(3000)]
    counts = Counter(len(one.abnormalities) for one in patients)
    assert abs(counts[0] / 3000 - 0.15) < 0.03
    assert set(counts) == {0, 1, 2, 3}
    tags = Counter(ab.tag for one in patients for ab in one.abnormalities)
    assert len(tags) == len(CANDIDATES)
    assert min(tags.values()) > 0.03 * 3000


def test_report_is_a_paragraph_of_sentences(examples):
    for one in examples:
        sentences = one.report.rstrip(".").split(". ")
        assert 4 <= len(sentences) <= 10
        for sentence in sentences:
            assert sentence[0].isupper()
            assert 4 <= len(sentence.split()) <= 9
    assert len({one.report for one in examples}) > 0.35 * len(examples)
    words = {word.strip(".,") for one in examples for word in one.report.lower().split()}
    assert all(word.isalpha() for word in words)
    assert 50 <= len(words) <= 100


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"studies": -1}, "phantom: studies must be at least 0, found -1"),
        ({"studies": 1, "seed": -3}, "phantom: seed must be at least 0, found -3"),
        (
            {"studies": 1, "image_size": 8},
            f"phantom: image_size must be at least {SMALLEST_IMAGE}, found 8",
        ),
    ],
)
def test_a_wrong_number_is_refused_before_anything_is_drawn(values, message):
    with pytest.raises(UsageError, match=f"^{message}$"):
        draw(**values)
