import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from raymed.data import split
from raymed.errors import UsageError


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
    with pytest.raises(UsageError, match="at least 3 studies, and there are 2"):
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
    assert (found.images, found.test_images) == (leaked, 500)
    assert found.share == leaked / 500 > 0.4
    with pytest.raises(UsageError, match="only 1000 images: use protocol `study`"):
        split.by_image(1000, 0)


def test_given_protocol() -> None:
    given = ["train", " Validation", "valid", "TEST", None, ""]
    ids = list("abcdef")
    assert split.as_given(ids, given) == ["train", "val", "val", "test", None, None]
    with pytest.raises(UsageError, match="image b: split is 'dev'"):
        split.as_given(["a", "b"], ["train", "dev"])
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"train": [], "val": []}', "KeyError: 'test'"),
        ("[]", "not a split file"),
        ("{", "not a split file"),
        ('{"train": [1], "val": [], "test": []}', "not a split file"),
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
