"""Tables as people have them, prepared whole: what is taken, what is left out, what is said."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from raymed.data.prepare import prepare_source
from raymed.data.sources import load_settings
from raymed.errors import UsageError

REPORTS = ["Heart normal. Lungs clear.", "Left effusion.", "Right opacity. No effusion."]
TAGS = ["normal", "effusion", "opacity"]
ROWS = [{"image": f"{n}.png", "report": REPORTS[n % 3], "tags": TAGS[n % 3]} for n in range(12)]


def table(folder: Path, rows: list[dict[str, Any]], kind: str = "jsonl", width: int = 1) -> Path:
    """Write a table, and an image ``00..N.png`` for each row."""
    for number in range(len(rows)):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:0{width}}.png")
    path = folder / f"t.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "csv":
        lines = [",".join(f'"{"" if v is None else v}"' for v in row.values()) for row in rows]
        path.write_text("\n".join([",".join(f'"{name}"' for name in rows[0]), *lines]) + "\n")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Prepared:
    """A prepared dataset and what was said."""

    def __init__(self, path: Path, *settings: str) -> None:
        out = path.parent / "out"
        console = Console(width=300, force_terminal=False)
        with console.capture() as capture:
            self.info = prepare_source(
                "table",
                str(path),
                load_settings("table", [f"out={out}", "image_size=8", "overwrite=true", *settings]),
                console,
            )
        self.said = capture.get().splitlines()
        self.rows: dict[str, dict[str, Any]] = {}
        self.sides = defaultdict(set)
        for side in ("train", "val", "test"):
            for part in out.glob(f"{side}-*.parquet"):
                for row in pq.read_table(part).to_pylist():
                    self.rows[row["image_id"]] = row
                    self.sides[side].add(row["image_id"])
        rejected = pq.read_table(out / "rejected.parquet").to_pylist()
        self.rejected = {row["image_id"]: row["reason"] for row in rejected}

    def tags(self) -> dict[str, list[str]]:
        return {name: row["tags"] for name, row in self.rows.items()}


SPLITS = ["Train", "training", "TRAIN ", "train", "val", "dev", "validate", "Validation"]
SPLITS += ["valid", "test", "Testing", None]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("name", ["split", "Split"])
def test_a_split_column_is_used(tmp_path: Path, kind: str, name: str) -> None:
    rows = [{**row, name: split} for row, split in zip(ROWS, SPLITS, strict=True)]
    path = table(tmp_path, rows, kind)
    made = Prepared(path)
    expected = {"train": range(4), "val": range(4, 9), "test": range(9, 11)}
    assert made.sides == {side: {f"{n}.png" for n in of} for side, of in expected.items()}
    assert made.rejected == {"11.png": "no split is named for it"}
    assert made.info.protocol == "given"
    split_line = (
        "Images per split (protocol given, as the source names them): train 4, val 5, test 2"
    )
    assert split_line in made.said
    assert (
        f"Columns used: image from image; report from report; tags from tags; split from {name}"
        in (made.said)
    )
    drawn = Prepared(path, "split=study")
    assert (drawn.info.protocol, sum(drawn.info.counts.values())) == ("study", 12)
    assert f"Columns not used: {name}" in drawn.said


def test_a_split_column_of_another_name_is_pointed_out(tmp_path: Path) -> None:
    rows = [{**row, "set": "dev" if n % 3 else "train"} for n, row in enumerate(ROWS)]
    made = Prepared(table(tmp_path, rows))
    assert "Columns not used: set" in made.said
    assert "Column set holds train, dev; to use it: columns.split=set" in made.said
    assert made.info.protocol == "study"


def test_an_unknown_split_is_refused_before_an_image_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{**row, "split": "train"} for row in ROWS * 200]
    rows[2345]["split"] = "fold 3"
    path = table(tmp_path, rows[:12])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("raymed.data.shards.read_image", None)
    with pytest.raises(
        UsageError, match=r"row 2346, column 'split': unknown split 'fold 3'.*split=stu"
    ):
        Prepared(path)


LABELS: dict[str, list[Any]] = {
    "No Finding": [1.0, None, 0.0] * 4,
    "Edema": [-1.0, "", 1.0] * 4,
    "Left, Effusion": [0, 1, 0] * 4,
    "Seen": [True, False, None] * 4,
    "never": [0.0] * 12,
    "empty": [None] * 12,
}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("uncertain", ["", "uncertain=u-zeros", "uncertain=u-ones"])
def test_a_column_for_each_label(tmp_path: Path, kind: str, uncertain: str) -> None:
    rows = []
    for n, row in enumerate(ROWS):
        labels = {name: values[n] for name, values in LABELS.items()}
        if kind == "parquet":
            labels["Edema"] = labels["Edema"] or None
        rows.append({"image": row["image"], "report": row["report"], **labels})
    made = Prepared(
        table(tmp_path, rows, kind),
        f"columns.tags={json.dumps(list(LABELS))}",
        *([uncertain] if uncertain else []),
    )
    first = ["no finding", "edema", "seen"] if "ones" in uncertain else ["no finding", "seen"]
    by_row = [first, ["left, effusion"], ["edema"]]
    assert made.tags() == {f"{n}.png": by_row[n % 3] for n in range(12)}
    assert set(json.loads((tmp_path / "out/tags.json").read_text())) == {
        tag for tags in by_row for tag in tags
    }
    names = ", ".join(name for name in LABELS if name != "empty")
    assert f"Label columns, each a tag where it is 1: {names}" in made.said


def test_label_columns_joined_by_commas(tmp_path: Path) -> None:
    rows = [
        {"image": r["image"], "report": r["report"], "Edema": float(n % 2), "Mass": 1 - n % 2}
        for n, r in enumerate(ROWS)
    ]
    made = Prepared(table(tmp_path, rows, "csv"), "columns.tags=Edema, Mass")
    assert made.tags() == {f"{n}.png": [("mass", "edema")[n % 2]] for n in range(12)}


def test_labels_that_nobody_asked_for_are_pointed_out(tmp_path: Path) -> None:
    rows = [
        {"image": r["image"], "report": r["report"], "Edema": n % 2, "Mass": 1 - n % 2}
        for n, r in enumerate(ROWS)
    ]
    made = Prepared(table(tmp_path, rows))
    assert "To use these as labels: columns.tags=Edema,Mass" in made.said
    assert "Tags: no column found; using the most frequent words of the reports" in made.said


def test_a_stray_value_in_a_column_of_labels_is_refused(tmp_path: Path) -> None:
    rows = [{**row, "tags": "unknown" if n == 9 else n % 2} for n, row in enumerate(ROWS)]
    message = r"row 10: column 'tags' holds 'unknown', but labels in 11 of 12 cells"
    with pytest.raises(UsageError, match=message):
        Prepared(table(tmp_path, rows))


def test_numbers_that_are_no_labels_are_pointed_out(tmp_path: Path) -> None:
    rows = [{**row, "tags": str(n % 4)} for n, row in enumerate(ROWS)]
    rows[0]["tags"] = "5"
    made = Prepared(table(tmp_path, rows))
    assert made.tags()["1.png"] == ["1"]
    (note,) = [line for line in made.said if line.startswith("Column tags: ")]
    assert note.startswith("Column tags: 5 of 12 cells hold 1, 0 or -1, but others do not")


MISSING = [None, "nan", "NaN", "N/A", "NULL", " none", "<NA>", ""]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_missing_cells_of_every_field(tmp_path: Path, kind: str) -> None:
    rows = [{**row, "study": f"s{n}", "split": None, "view": None} for n, row in enumerate(ROWS)]
    for n, missing in enumerate(MISSING):
        rows[n] |= {"report": missing}
        rows.append({**ROWS[n], "tags": missing, "study": missing, "split": missing})
        rows[-1] |= {"image": f"{12 + n}.png", "view": missing}
    rows.append({**rows[-1], "image": f"{12 + len(MISSING)}.png", "report": "None."})
    made = Prepared(table(tmp_path, rows, kind))
    assert made.rejected == {f"{n}.png": "report is missing" for n in range(len(MISSING))}
    assert f"Left out: {len(MISSING)} (report is missing), such as 0.png" in made.said
    assert set(made.rows) == {f"{n}.png" for n in range(len(MISSING), len(rows))}
    for n in range(12, 12 + len(MISSING)):
        row = made.rows[f"{n}.png"]
        assert (row["tags"], row["study"], row["view"]) == ([], f"{n}.png", None)
    assert made.rows["20.png"]["sentences"] == ["none"]
    assert made.info.protocol == "study"


def test_missing_numbers_of_parquet(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"image": float(n), "report": row["report"], "tags": row["tags"], "study": n // 2 + 0.0}
        for n, row in enumerate(ROWS)
    ]
    rows[3]["study"] = float("nan")
    rows.append({**rows[0], "image": float("nan")})
    made = Prepared(table(tmp_path, rows, "parquet", width=4))
    assert set(made.rows) == {str(n) for n in range(12)}
    assert made.rows["3"]["study"] == "3"
    assert made.rows["4"]["study"] == made.rows["5"]["study"] == "2"
    assert made.rejected == {"": "row has no image: row 13"}


def test_several_tags_in_a_cell(tmp_path: Path) -> None:
    ways = ["['mass', 'edema']", '["mass", "edema"]', "mass;edema", "mass | edema"]
    rows = [{**row, "tags": ways[n % 4]} for n, row in enumerate(ROWS)]
    rows[5]["tags"] = "[mass in the lung, edema]"
    made = Prepared(table(tmp_path, rows))
    assert set(map(tuple, made.tags().values())) == {("mass", "edema")}
    assert made.rejected["5.png"].startswith("tags cannot be read: not a Python or JSON list")


def test_commas_between_tags(tmp_path: Path) -> None:
    rows = [{**row, "tags": f"mass, {row['tags']}"} for row in ROWS]
    path = table(tmp_path, rows)
    whole = Prepared(path)
    assert whole.tags()["0.png"] == ["mass, normal"]
    (note,) = [line for line in whole.said if line.startswith("Column tags")]
    assert "12 of 12 cells contain commas" in note
    assert note.endswith("set tag_separator=,")
    divided = Prepared(path, "tag_separator=,")
    assert divided.tags() == {f"{n}.png": ["mass", TAGS[n % 3]] for n in range(12)}
    assert not [line for line in divided.said if line.startswith("Column tags")]


@pytest.mark.parametrize("columns", ["findings,impression", "impression, findings"])
def test_a_report_in_two_columns(tmp_path: Path, columns: str) -> None:
    rows = []
    for n, row in enumerate(ROWS):
        parts = {"findings": "Heart large", "impression": f"See {'abc'[n % 3]}"}
        rows.append({"image": row["image"], "tags": row["tags"], **parts})
    rows[3]["findings"], rows[4]["impression"] = "nan", None
    rows[5] |= {"findings": "N/A", "impression": ""}
    made = Prepared(table(tmp_path, rows), f"columns.report={columns}")
    expected = ["heart large", "see c"][:: 1 if columns[0] == "f" else -1]
    assert made.rows["2.png"]["sentences"] == expected
    assert made.rows["3.png"]["sentences"] == ["see a"]
    assert made.rows["4.png"]["sentences"] == ["heart large"]
    assert made.rejected == {"5.png": "report is missing"}


def test_a_column_whose_name_has_a_comma(tmp_path: Path) -> None:
    rows = [{"image": r["image"], "Report, final": r["report"], "tags": r["tags"]} for r in ROWS]
    made = Prepared(table(tmp_path, rows), "columns.report=Report, final")
    assert made.rows["1.png"]["sentences"] == ["left effusion"]


def test_two_columns_that_could_be_one_field(tmp_path: Path) -> None:
    rows = [{**row, "Split": "train", "SPLIT": "train"} for row in ROWS]
    with pytest.raises(UsageError, match=r"'Split' and 'SPLIT' could both be the field split"):
        Prepared(table(tmp_path, rows))


def test_images_by_absolute_path_id_and_what_is_not_there(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{**row} for row in ROWS]
    rows[0]["image"] = f"{tmp_path}/00.png"
    for n in range(1, 10):
        rows[n]["image"] = (f"{n:02}", n, f"{n}.0")[n % 3]
    rows[10]["image"] = "absent"
    rows[11]["image"] = "/elsewhere/11.png"
    made = Prepared(table(tmp_path, rows, width=2))
    ids = {"00.png", *("03", "06", "09"), *(str(n) for n in (1, 2, 4, 5, 7, 8))}
    assert set(made.rows) == ids
    assert made.rejected == {
        "absent": f"image file not found: {tmp_path}/absent",
        "/elsewhere/11.png": "image path is outside the images folder: /elsewhere/11.png is not "
        f"below {tmp_path}",
    }
    assert f"Left out: 1 (image file not found), such as absent: {tmp_path}/absent" in made.said
    for n in (1, 4):
        pixels = np.asarray(Image.open(tmp_path / f"{n:02}.png"))
        assert made.rows[str(n)]["pixels"] == pixels.tobytes()
