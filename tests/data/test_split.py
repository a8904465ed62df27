import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from raymed.data import split
from raymed.data.examples import Example
from raymed.data.sources import iu_xray
from raymed.data.text import sentences
from raymed.errors import UsageError

REAL = Path(__file__).resolve().parents[2] / "../shared/data/iu_xray"


def studies_of(count: int, seed: int = 0) -> list[str]:
    sizes = np.random.default_rng(seed).integers(1, 5, count)
    return [f"s{number}" for number, size in enumerate(sizes) for _ in range(size)]


@pytest.mark.parametrize("count", [3, 4, 10, 200])
def test_no_study_is_on_two_sides(count: int) -> None:
    studies = studies_of(count)
    sides = split.by_study(studies, seed=1)
    assert {len({b for a, b in zip(studies, sides, strict=True) if a == s}) for s in studies} == {1}
    images = Counter(sides)
    assert set(images) == {"train", "val", "test"}
    assert split.leakage(studies, sides) == split.Leakage(0, images["test"])
    if count == 200:
        assert abs(images["val"] - len(studies) / 10) <= 4
        assert abs(images["test"] - len(studies) / 10) <= 4


def test_study_protocol_depends_on_the_seed_and_not_on_the_order() -> None:
    studies = studies_of(50)
    sides = dict(zip(studies, split.by_study(studies, 3), strict=True))
    backwards = studies[::-1]
    assert dict(zip(backwards, split.by_study(backwards, 3), strict=True)) == sides
    assert dict(zip(studies, split.by_study(studies, 4), strict=True)) != sides


def test_one_large_study_leaves_something_for_every_side() -> None:
    for seed in range(20):
        assert set(split.by_study(["big"] * 90 + ["a", "b"], seed)) == {"train", "val", "test"}


def test_two_studies_are_too_few() -> None:
    with pytest.raises(UsageError, match="at least 3 studies, but there are 2"):
        split.by_study(["a", "b", "b"], 0)


def test_paper_protocol_and_its_leakage() -> None:
    studies = [f"s{number // 2}" for number in range(2400)]
    sides = split.by_image(len(studies), seed=5)
    assert Counter(sides) == {"train": 1400, "val": 500, "test": 500}
    assert sides == split.by_image(len(studies), seed=5) != split.by_image(len(studies), seed=6)
    leaked = 0
    for number, side in enumerate(sides):
        leaked += side == "test" and sides[number ^ 1] == "train"
    found = split.leakage(studies, sides)
    assert (found.leaked, found.test_images) == (leaked, 500)
    assert found.share == leaked / 500 > 0.4
    with pytest.raises(UsageError, match="only 1000 images: use protocol `study`"):
        split.by_image(1000, 0)


def test_given_protocol() -> None:
    given = ["train", " Validation", "valid", "TEST", None, "", "validate", "dev", "Training"]
    expected = ["train", "val", "val", "test", None, None, "val", "val", "train"]
    assert split.as_given(list("abcdefghi"), given) == expected
    with pytest.raises(UsageError, match=r"image b: unknown split 'fold 1'.*split=study"):
        split.as_given(["a", "b"], ["train", "fold 1"])
    with pytest.raises(UsageError, match="names none"):
        split.as_given(["a"], [None])


def test_split_file_with_ids_and_with_objects(tmp_path: Path) -> None:
    path = tmp_path / "annotation.json"
    path.write_text(
        json.dumps(
            {
                "train": [{"id": "CXR2384_IM-0942"}, {"id": "CXR2384_IM-0943"}],
                "val": ["CXR1_1_IM-0001"],
                "test": ["image-7", "study-9"],
            }
        )
    )
    listed = split.read_split_file(path)
    ids = ["CXR2384_IM-0942-1001", "CXR1_IM-0001-3001", "image-7", "image-8", "other"]
    studies = ["CXR2384", "CXR1", "x", "study-9", "CXR23"]
    assert split.by_file(ids, studies, listed) == ["train", "val", "test", "test", None]


def test_split_file_with_other_names_numbers_and_missing_ids(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    content = {"Training": [1, 2.0], "validate": [{"id": "3"}, None, "nan"], "TEST": ["04"], "x": 1}
    path.write_text("\ufeff" + json.dumps(content))
    listed = split.read_split_file(path)
    assert listed == {"1": "train", "2": "train", "3": "val", "04": "test"}


def test_a_list_with_a_damaged_name(tmp_path: Path) -> None:
    path = tmp_path / "annotation.json"
    of = {s: [{"id": f"{s}{n}", "split": s} for n in range(2)] for s in ("train", "val", "test")}
    content = {"train": of["train"], "val": of["val"], "    ": of["test"], "notes": [{"id": "x"}]}
    path.write_text(json.dumps(content))
    expected = {f"{name}{n}": name for name in of for n in range(2)}
    assert split.read_split_file(path) == expected
    path.write_text(json.dumps({**content, "    ": [*of["test"], *of["val"]]}))
    with pytest.raises(UsageError, match="KeyError: 'test'"):
        split.read_split_file(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"train": [], "val": []}', "KeyError: 'test'"),
        ("[]", "not a split file"),
        ("{", "not a split file"),
        ('{"train": [["a"]], "val": [], "test": []}', "not a split file"),
        ('{"train": [], "val": [], "dev": [], "test": []}', "split val occurs twice.*dev"),
        ('{"train": ["a"], "val": [], "test": ["a"]}', "a is in both train and test"),
    ],
)
def test_wrong_split_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "ids.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=message):
        split.read_split_file(path)


def test_missing_split_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no\.json: cannot read"):
        split.read_split_file(tmp_path / "no.json")


def test_a_split_file_of_another_data_set(tmp_path: Path) -> None:
    path = tmp_path / "ids.json"
    path.write_text(json.dumps({"train": ["CXR1_IM-1"], "val": ["CXR2"], "test": []}))
    listed = split.read_split_file(path)
    with pytest.raises(UsageError, match=r"none of the 2 usable images.*'CXR1'.*'a' of study 's'"):
        split.by_file(["a", "b"], ["s", "s"], listed)


def test_coverage_of_a_split_file() -> None:
    listed = {"a": "train", "b": "train", "c": "train", "d": "val"}
    assert split.coverage(listed, {"a", "b", "d", "x"}, {"a"}) == (
        "train 3 ids (2 found, 1 prepared), val 1 ids (1 found, 0 prepared), "
        "test 0 ids (0 found, 0 prepared)"
    )
    assert split.coverage({}, {"a"}, {"a"}) == ""


@pytest.mark.skipif(not REAL.is_dir(), reason="the official IU X-Ray report archive is not there")
def test_the_protocols_on_the_official_archive() -> None:
    pairs = [pair for pair in iu_xray.read(REAL) if isinstance(pair, Example)]
    studies = [pair.study for pair in pairs if sentences(pair.report)]
    total = len(studies)
    # Of a study with k images one is in test: its k - 1 sisters miss training if all are among
    # the 999 other images of validation and test.
    missed = [
        math.comb(999, size - 1) / math.comb(total - 1, size - 1)
        for size in (Counter(studies)[study] for study in studies)
    ]
    expected = 1 - sum(missed) / total
    shares = [split.leakage(studies, split.by_image(total, seed)).share for seed in range(20)]
    assert np.mean(shares) == pytest.approx(expected, abs=0.01)
    assert round(expected, 2) == 0.82

    sides = split.by_study(studies, 0)
    assert split.leakage(studies, sides).leaked == 0
    assert all(
        abs(count - total / 10) < 5 for side, count in Counter(sides).items() if side != "train"
    )

    listed = split.read_split_file(REAL / "r2gen_split_ids.json")
    assert split.read_split_file(REAL / "r2gen_annotation.json") == listed
    given = split.by_file([pair.image_id for pair in pairs], [pair.study for pair in pairs], listed)
    published = dict(zip((pair.study for pair in pairs), given, strict=True))
    assert Counter(published.values()) == {"train": 2069, "val": 296, "test": 590, None: 896}
    assert split.leakage([pair.study for pair in pairs], given).leaked == 0
