import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from raymed.data.examples import Example, Rejected
from raymed.data.prepare import prepare_source
from raymed.data.sources import r2gen
from raymed.data.sources.table_columns import TableSettings
from raymed.errors import UsageError
from raymed.sections import PrepareConfig

REAL = Path(__file__).resolve().parents[3] / "../shared/data/iu_xray/r2gen_annotation.json"


def record(number: int, side: str, images: int = 2) -> dict[str, object]:
    return {
        "id": f"CXR{number}_IM-{number:04}",
        "report": f"Heart is {'large' if number % 2 else 'small'}. Lungs clear.",
        "image_path": [f"CXR{number}/{view}.png" for view in range(images)],
        "split": side,
    }


def annotation(folder: Path, content: object) -> Path:
    (folder / "annotation.json").write_text(json.dumps(content))
    return folder / "annotation.json"


def with_images(folder: Path, content: dict[str, list[dict[str, object]]]) -> Path:
    for one in (one for records in content.values() for one in records):
        for name in one["image_path"]:  # type: ignore[attr-defined]
            (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 9).save(folder / "images" / name)
    return annotation(folder, content)


def test_splits_and_studies_are_those_of_the_file(tmp_path: Path) -> None:
    sides = {"train": range(6), "val": range(6, 8), "test": range(8, 11)}
    path = with_images(
        tmp_path, {s: [record(n, s) for n in numbers] for s, numbers in sides.items()}
    )
    settings = PrepareConfig(out=str(tmp_path / "out"), image_size=8)
    info = prepare_source("r2gen", str(path), settings, Console(quiet=True))
    assert info.protocol == "given"
    assert info.counts == {"train": 12, "val": 4, "test": 6}
    for side, numbers in sides.items():
        rows = [
            row
            for part in (tmp_path / "out").glob(f"{side}-*.parquet")
            for row in pq.read_table(part).to_pylist()
        ]
        assert {(row["image_id"], row["study"], *row["sentences"]) for row in rows} == {
            (f"CXR{n}/{v}.png", f"CXR{n}_IM-{n:04}", f"heart is {size}", "lungs clear")
            for n in numbers
            for v in range(2)
            for size in ["large" if n % 2 else "small"]
        }
    drawn = PrepareConfig(out=str(tmp_path / "drawn"), image_size=8, split="study")
    assert prepare_source("r2gen", str(path), drawn, Console(quiet=True)).protocol == "study"


def test_a_record_says_its_split_and_its_study(tmp_path: Path) -> None:
    path = annotation(
        tmp_path,
        {
            "train": [{"id": "a", "study_id": 7, "report": "One.", "image_path": "a.png"}],
            "    ": [{**record(1, "test", 1), "study_id": None}],
            "val": [{"id": "c", "report": None, "image_path": []}],
        },
    )
    rejected, first, second = r2gen.read(path)
    assert rejected == Rejected("", "c", "record has no image")
    assert isinstance(first, Example)
    assert isinstance(second, Example)
    assert (first.study, first.split, first.image) == ("7", "train", tmp_path / "a.png")
    assert (second.study, second.split, second.image_id) == ("CXR1_IM-0001", "test", "CXR1/0.png")


def test_a_split_of_no_known_name_is_refused(tmp_path: Path) -> None:
    """By name, before any image is read; unless the splits are drawn."""
    unnamed = {**record(2, "test"), "split": None}
    path = annotation(tmp_path, {"train": [record(1, "train")], "    ": [unnamed]})
    with pytest.raises(UsageError, match=r"key of a list.*unknown split '    '; it must be train"):
        r2gen.read(path)
    assert len(list(r2gen.read(path, splits=False))) == 4
    path = annotation(tmp_path, {"train": [record(1, "train"), record(2, "held out")]})
    with pytest.raises(UsageError, match="record 2 of 'train': unknown split 'held out'"):
        r2gen.read(path)
    path = annotation(tmp_path, {"Training": [unnamed], "validate": [record(3, "dev")]})
    splits = [pair.split for pair in r2gen.read(path) if isinstance(pair, Example)]
    assert splits == ["Training", "Training", "dev", "dev"]


def test_reports_keep_their_spaces_and_images_their_record(tmp_path: Path) -> None:
    one = {"id": "a", "study_id": 7, "report": "  FINDINGS:\n  2. Clear. ", "image_path": ["a"]}
    path = annotation(tmp_path, {"train": [one, {**one, "id": "b", "image_path": ["b", "c"]}]})
    found = [pair for pair in r2gen.read(path) if isinstance(pair, Example)]
    assert {pair.report for pair in found} == {one["report"]}
    assert [pair.record for pair in found] == ["train 1", "train 2", "train 2"]
    assert {pair.study for pair in found} == {"7"}


def test_images_that_are_missing_are_left_out(tmp_path: Path) -> None:
    path = with_images(tmp_path, {s: [record(n, s)] for n, s in enumerate(("train", "val"))})
    content = json.loads(path.read_text()) | {"test": [record(2, "test"), record(3, "test", 3)]}
    for name in ("CXR2/1", "CXR3/0", "CXR3/2"):
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8), 9).save(tmp_path / "images" / f"{name}.png")
    settings = PrepareConfig(out=str(tmp_path / "out"), image_size=8)
    source = str(annotation(tmp_path, content))
    info = prepare_source("r2gen", source, settings, Console(quiet=True))
    assert info.counts == {"train": 2, "val": 2, "test": 3}
    rejected = pq.read_table(tmp_path / "out/rejected.parquet").to_pylist()
    assert {row["image_id"]: row["study"] for row in rejected} == {
        "CXR2/0.png": "CXR2_IM-0002",
        "CXR3/1.png": "CXR3_IM-0003",
    }
    assert all(row["reason"].startswith("image file not found") for row in rejected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            [],
            "not an R2Gen annotation file: it must be a JSON object with the lists of records",
        ),
        ({}, "not an R2Gen annotation file"),
        ({"a": "b"}, "not an R2Gen annotation file"),
        ({"val": ["CXR1"]}, "record 1 of 'val': must be an object with an `id`"),
        ({"val": [record(1, "val"), {"report": "x"}]}, "record 2 of 'val': must be an object"),
        ({"val": [{"id": "a", "image_path": [3]}]}, "image_path must be a list of paths, not .3."),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        r2gen.read(annotation(tmp_path, content))


def test_not_json_and_no_images(tmp_path: Path) -> None:
    path = annotation(tmp_path, {"train": []})
    with pytest.raises(UsageError, match="nowhere: the images folder does not exist"):
        r2gen.read(path, tmp_path / "nowhere")
    path.write_text("id,report\n")
    with pytest.raises(UsageError, match=r"annotation\.json: not JSON"):
        r2gen.read(path)


def test_as_a_table_it_names_the_source(tmp_path: Path) -> None:
    path = annotation(tmp_path, {"train": [record(1, "train")]})
    settings = TableSettings(out=str(tmp_path / "out"))
    with pytest.raises(UsageError, match=f"is not a table.*raymed prepare r2gen {path}"):
        prepare_source("table", str(path), settings, Console(quiet=True))


@pytest.mark.skipif(not REAL.is_file(), reason="the real annotation file is not there")
def test_the_real_file() -> None:
    pairs = list(r2gen.read(REAL))
    assert Counter(pair.split for pair in pairs if isinstance(pair, Example)) == {
        "train": 2 * 2069,
        "val": 2 * 296,
        "test": 2 * 590,
    }
