import errno
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from raymed.data import parts
from raymed.data.examples import Example, Finding, Rejected
from raymed.data.images import read_image
from raymed.errors import UsageError
from tests.support.prepared import prepare_examples


def example(number: int, **changes: object) -> Example:
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8)).astype(np.uint8)
    fields = {
        "image_id": f"i{number}",
        "study": f"s{number // 2}",
        "image": pixels,
        "report": f"Heart normal. Number {'abcdefghij'[number % 10]}.",
        "tags": ("Heart", "heart") if number % 3 else ("Lung",),
        "findings": (Finding("Heart", 0.1, 0.2, 0.3, 0.4),),
        "view": "frontal" if number % 2 else None,
    }
    return Example(**{**fields, **changes})  # type: ignore[arg-type]


def examples(count: int = 20) -> list[Example | Rejected]:
    return [example(number) for number in range(count)]


def rows_of(out: Path) -> dict[str, dict[str, object]]:
    rows = {}
    for path in sorted(out.glob("t*.parquet")) + sorted(out.glob("val*.parquet")):
        for row in pq.read_table(path).to_pylist():
            rows[row["image_id"]] = {**row, "side": path.name.partition("-")[0]}
    return rows


def test_every_row_is_written_as_the_source_gave_it(tmp_path: Path) -> None:
    info = prepare_examples(examples(), tmp_path / "out", image_size=8)
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 20
    for number in range(20):
        given, row = example(number), rows[f"i{number}"]
        assert row["pixels"] == np.asarray(given.image).tobytes()
        assert row["tags"] == (["heart"] if number % 3 else ["lung"])
        assert row["sentences"] == ["heart normal", f"number {'abcdefghij'[number % 10]}"]
        assert (row["study"], row["view"]) == (given.study, given.view)
        assert row["findings"] == [
            {"tag": "heart", "left": 0.1, "top": 0.2, "right": 0.3, "bottom": 0.4}
        ]
    assert info.counts == Counter(row["side"] for row in rows.values())
    for part in (part for of_split in info.parts.values() for part in of_split):
        content = (tmp_path / "out" / part.file).read_bytes()
        assert part.sha256 == hashlib.sha256(content).hexdigest()
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["schema"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_words_and_tags_are_counted_over_training(tmp_path: Path) -> None:
    data = [example(n, split="train" if n < 10 else "test") for n in range(12)]
    data += [example(12, split="val", tags=("only here",), report="Unseen unseen.")]
    prepare_examples(data, tmp_path / "o", split="given", image_size=8)
    words = json.loads((tmp_path / "o/words.json").read_text())
    assert words == {"heart": 10, "normal": 10, "number": 10} | dict.fromkeys("abcdefghij", 1)
    assert list(words) == ["heart", "normal", "number", *"abcdefghij"]
    tags = json.loads((tmp_path / "o/tags.json").read_text())
    assert list(tags.items()) == [("heart", 6), ("lung", 4), ("only here", 0)]


def test_bad_rows_are_left_out_with_their_reason(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    Image.new("RGB", (9, 4), (9, 9, 9)).save(tmp_path / "good.png")
    bad = [
        example(50, image=tmp_path / "text.png"),
        example(51, image=tmp_path / "missing.png"),
        example(52, report=" \n"),
        example(53, report="1. 2.5 -"),
        example(3),
        Rejected("x", "y", "the source: says so"),
    ]
    data = [*examples(), *bad, example(54, image=tmp_path / "good.png")]
    console = Console(width=200, force_terminal=False)
    with console.capture() as capture:
        info = prepare_examples(data, tmp_path / "o", image_size=8, console=console)
    rejected = {
        row["image_id"]: row["reason"]
        for row in pq.read_table(tmp_path / "o/rejected.parquet").to_pylist()
    }
    assert rejected == {
        "i50": "not a PNG, JPEG, TIFF or DICOM image",
        "i51": f"image file not found: {tmp_path}/missing.png",
        "i52": "report is missing",
        "i53": "report has no sentence with a word in it",
        "i3": "duplicate image id; the first one is used",
        "x": "the source: says so",
    }
    assert info.rejected["the source"] == 1
    assert sum(info.rejected.values()) == 6
    assert (info.found.images, info.prepared.images) == (25, 21)
    assert (
        f"Left out: 1 (image file not found), such as i51: {tmp_path}/missing.png\n"
        in capture.get()
    )
    assert "Left out: 1 (the source), such as x: says so\n" in capture.get()
    good = rows_of(tmp_path / "o")["i54"]["pixels"]
    assert good == read_image(tmp_path / "good.png", 8).tobytes()


def test_parts_follow_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepare_examples(examples(40), tmp_path / "whole", image_size=8)
    monkeypatch.setattr(parts, "PART_ROWS", 7)
    parted = prepare_examples(examples(40), tmp_path / "parted", image_size=8)
    assert [part.rows for part in parted.parts["train"]] == [7, 7, 7, 7, 4]
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "parted")
    assert whole.content_hash == parted.content_hash


def test_content_hash_follows_the_content(tmp_path: Path) -> None:
    def hashed(data: list[Example | Rejected], **options: object) -> str:
        options = {"image_size": 8, "overwrite": True, **options}
        return prepare_examples(data, tmp_path / "o", **options).content_hash  # type: ignore[arg-type]

    first = hashed(examples())
    assert first == hashed(examples(), source="y") == hashed([*examples(), Rejected("", "", "z")])
    other_pixels = example(0, image=np.zeros((8, 8), np.uint8))
    changed = [
        hashed([other_pixels, *examples()[1:]]),
        hashed([example(0, report="Other."), *examples()[1:]]),
        hashed([example(0, tags=("lung", "heart")), *examples()[1:]]),
        hashed(examples(), seed=1),
        hashed(examples(), image_size=9),
    ]
    assert len({first, *changed}) == 6


def test_paper_split_prints_its_leakage(tmp_path: Path) -> None:
    console = Console(width=200, force_terminal=False)
    with console.capture() as capture:
        info = prepare_examples(
            examples(1100),
            tmp_path / "o",
            source="iu-xray",
            image_size=8,
            split="paper",
            console=console,
        )
    rows = rows_of(tmp_path / "o").values()
    trained = {row["study"] for row in rows if row["side"] == "train"}
    leaked = sum(row["side"] == "test" and row["study"] in trained for row in rows)
    assert info.counts == {"train": 100, "val": 500, "test": 500}
    assert info.leaked == leaked > 0
    assert f"Leakage: {leaked} of 500 test images ({leaked / 500:.0%})" in capture.get()
    assert "1,915" in capture.get()


def test_r2gen_split(tmp_path: Path) -> None:
    ids = tmp_path / "ids.json"
    ids.write_text(
        json.dumps({"train": ["s0", "s1", "s4", "s7", "gone"], "val": ["s2"], "test": ["s3"]})
    )
    console = Console(width=200, force_terminal=False)
    options: dict[str, Any] = {"image_size": 8, "split": "r2gen", "console": console}
    data = [*examples(12), example(14, report=""), example(40)]
    with console.capture() as capture:
        info = prepare_examples(data, tmp_path / "o", split_file=str(ids), **options)
    assert info.counts == {"train": 6, "val": 2, "test": 2}
    assert info.rejected == {"no split is named for it": 3, "report is missing": 1}
    assert (
        "Ids in the split file: train 5 ids (4 found, 3 prepared), val 1 ids (1 found, 1 "
        "prepared), test 1 ids (1 found, 1 prepared)"
    ) in capture.get()
    with pytest.raises(UsageError, match="`r2gen` needs a split file"):
        prepare_examples(examples(12), tmp_path / "o2", **options)


def test_what_is_in_the_way_is_kept(tmp_path: Path) -> None:
    options: dict[str, Any] = {"image_size": 8}
    out = tmp_path / "out"
    out.mkdir()
    first = prepare_examples(examples(), out, **options)
    with pytest.raises(UsageError, match="already there"):
        prepare_examples(examples(), out, **options)
    second = prepare_examples(examples(30), out, overwrite=True, **options)
    assert (len(rows_of(out)), second.counts != first.counts) == (30, True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious").write_text("kept")
    for taken in (other, other / "precious"):
        with pytest.raises(UsageError, match="not a prepared dataset"):
            prepare_examples(examples(), taken, overwrite=True, **options)
    with pytest.raises(UsageError, match="cannot be written"):
        prepare_examples(examples(), other / "precious" / "below", **options)
    assert (other / "precious").read_text() == "kept"
    assert {path.name for path in tmp_path.iterdir()} == {"out", "other"}


def failing() -> Iterator[Example]:
    yield example(0)
    raise UsageError("no image at all")


@pytest.mark.parametrize(
    ("data", "protocol", "message"),
    [
        ([example(n, tags=("one", "One")) for n in range(9)], "study", "at least 2 different"),
        ([example(n, split="train") for n in range(9)], "given", "val and test would be empty"),
        (
            [example(n, report="") for n in range(9)],
            "study",
            r"no usable image.*9 \(report is missing\), such as i0",
        ),
        ([], "study", "no usable image with a report; left out: nothing"),
        (examples(9), "paper", "only 9 images"),
        (failing(), "study", "no image at all"),
    ],
)
def test_what_is_unfit_for_training(
    tmp_path: Path, data: list[Example], protocol: str, message: str
) -> None:
    console = Console(width=200, force_terminal=False)
    with console.capture() as capture, pytest.raises(UsageError, match=message):
        prepare_examples(
            data, tmp_path / "o", source="x", image_size=8, split=protocol, console=console
        )
    assert not list(tmp_path.iterdir())
    assert ("Statistics" in capture.get()) == bool(data)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(UsageError, match=f"{tmp_path}: no space left"):
        prepare_examples(examples(), tmp_path / "o", image_size=8)
    assert not list(tmp_path.iterdir())
