import gzip
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from raymed.data.dataset import PreparedDataset
from raymed.data.examples import Example, Rejected
from raymed.data.prepare import prepare_source
from raymed.data.schema import DatasetInfo
from raymed.data.sources import load_settings, mimic_cxr
from raymed.data.sources.mimic_tables import read_tables
from raymed.errors import UsageError
from tests.support.mimic_tree import Study, write_table, write_tree
from tests.support.r2gen_by_hand import references_by_hand

REPORT = "FINAL REPORT\n FINDINGS: \n \n The heart is {}.\n \n IMPRESSION:  No change.\n"
STUDIES = [
    Study(
        *(10000032, 50000002, REPORT.format("large"), "train", ("0.0", "-1.0", "1.0", "")),
        images={"a1": "PA", "a2": "LATERAL"},
    ),
    Study(10000032, 50000001, REPORT.format("small"), images={"b1": "AP", "b2": "LL"}),
    Study(10000017, 50000003, "\n IMPRESSION: Clear.", "validate", images={"c1": "PA"}),
    Study(10000017, 50000004, "\n CHEST, PA: Wide.", "validate", images={"c2": ""}, suffix=".dcm"),
    Study(11000001, 50000005, None, "test", images={"d1": "PA", "d2": "LL"}),
    Study(11000001, 50000006, REPORT.format("odd"), "test", None, images={"e1": "AP AXIAL"}),
    Study(11000002, 50000007, REPORT.format("wide"), "test", images={"f1": "PA"}, suffix=""),
    Study(11000003, 50000010, REPORT.format("high"), "test", images={"i1": "AP"}),
    Study(12000002, 50000008, "No headings.", "train", images={"g1": "PA"}),
    Study(12000002, 50000009, REPORT.format("big"), "", ("-1", "0", "1", "1"), images={"h1": "AP"}),
]
WRITTEN = {study.study: study for study in STUDIES}


class Prepared:
    """A prepared dataset and what was printed."""

    def __init__(self, root: Path, *settings: str) -> None:
        out = root.parent / "out"
        console = Console(width=300, force_terminal=False)
        given = [f"out={out}", "image_size=8", "overwrite=true", *settings]
        with console.capture() as capture:
            self.info: DatasetInfo = prepare_source(
                "mimic-cxr", str(root), load_settings("mimic-cxr", given), console
            )
        self.printed = capture.get()
        self.rows: dict[str, dict[str, Any]] = {}
        for split in ("train", "val", "test"):
            for part in out.glob(f"{split}-*.parquet"):
                for row in pq.read_table(part).to_pylist():
                    self.rows[row["image_id"]] = {**row, "split": split}
        rejected = pq.read_table(out / "rejected.parquet").to_pylist()
        self.rejected = {row["image_id"]: row["reason"] for row in rejected}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_tree(tmp_path / "mimic", STUDIES)
    return tmp_path / "mimic"


def test_a_tree_is_prepared(root: Path) -> None:
    prepared = Prepared(root)
    assert prepared.info.protocol == "given"
    assert prepared.info.counts == {"train": 4, "val": 2, "test": 2}
    assert {
        name: (row["split"], row["study"], row["view"], row["sentences"], row["tags"])
        for name, row in prepared.rows.items()
    } == {
        **{
            name: (split, study, view, ["no change", f"the heart is {size}"], tags)
            for name, split, study, view, size, tags in [
                ("a1", "train", "50000002", "PA", "large", ["no finding"]),
                ("a2", "train", "50000002", "LATERAL", "large", ["no finding"]),
                ("b1", "train", "50000001", "AP", "small", ["cardiomegaly"]),
                ("b2", "train", "50000001", "LL", "small", ["cardiomegaly"]),
                ("e1", "test", "50000006", "AP AXIAL", "odd", []),
                ("i1", "test", "50000010", "AP", "high", ["cardiomegaly"]),
            ]
        },
        "c1": ("val", "50000003", "PA", ["clear"], ["cardiomegaly"]),
        "c2": ("val", "50000004", None, ["wide"], ["cardiomegaly"]),
    }
    missing = root / "files/p11/p11000002/s50000007/f1.jpg"
    assert prepared.rejected == {
        "d1": "report file not found: p11/p11000001/s50000005.txt",
        "d2": "report file not found: p11/p11000001/s50000005.txt",
        "f1": f"image file not found: {missing}",
        "g1": "report has neither findings nor an impression: p12/p12000002/s50000008.txt",
        "h1": "no split is named for it",
    }
    assert "13 images and 9 labelled studies" in prepared.printed


def test_the_pixels_are_those_of_the_files(root: Path) -> None:
    rows = Prepared(root).rows
    for name, expected in (("a1", 50000002 % 256), ("a2", 50000002 % 256 + 40)):
        middle = rows[name]["pixels"][4 * 8 + 4]
        assert abs(middle - expected) <= 2, "JPEG is lossy"
    # DICOM without a window is shown from its minimum, in the upper half, to its maximum.
    assert [rows["c2"]["pixels"][8 * line + 4] for line in (1, 6)] == [0, 255]


def test_examples_of_a_patient_follow_each_other(root: Path) -> None:
    read = list(mimic_cxr.read(root))
    order = ["c1", "c2", "b1", "b2", "a1", "a2", "d1", "d2", "e1", "f1", "i1", "g1", "h1"]
    assert [each.image_id for each in read] == order
    assert {each.study for each in read} == {str(study) for study in WRITTEN}


def test_views_and_uncertain_labels(root: Path) -> None:
    prepared = Prepared(root, "views=frontal", "uncertain=u-ones")
    assert {n: r["tags"] for n, r in prepared.rows.items()} == {
        "a1": ["cardiomegaly", "no finding"],
        **{name: ["cardiomegaly", "pleural effusion"] for name in ("b1", "c1", "i1")},
    }
    assert prepared.rejected["a2"] == "view is lateral, but only frontal is kept"


@pytest.mark.parametrize("prefix", ["files/", "mimic-cxr-reports/files/", ""])
def test_reports_in_the_archive(root: Path, tmp_path: Path, prefix: str) -> None:
    in_folder = list(mimic_cxr.read(root))
    with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w") as archive:
        archive.writestr("README.txt", "Read me.")
        for path in sorted((root / "files").rglob("s*.txt")):
            archive.write(path, f"{prefix}{path.relative_to(root / 'files')}")
            path.unlink()
    assert list(mimic_cxr.read(root)) == in_folder
    (root / "mimic-cxr-reports.zip").rename(tmp_path / "r.zip")
    assert list(mimic_cxr.read(root, reports=tmp_path / "r.zip")) == in_folder


@pytest.mark.parametrize("below", ["mimic-cxr-reports/files", "mimic-cxr-reports", "texts"])
def test_reports_and_images_in_other_folders(tmp_path: Path, below: str) -> None:
    root = tmp_path / "mimic"
    write_tree(root, STUDIES, reports=root / below)
    given = root / below if below == "texts" else None
    texts = {
        each.image_id: each.report
        for each in mimic_cxr.read(root, reports=given)
        if isinstance(each, Example)
    }
    assert set(texts) == {"a1", "a2", "b1", "b2", "c1", "c2", "e1", "f1", "h1", "i1"}
    assert texts["a1"] == "No change.\n\nThe heart is large."
    shutil.move(root / "files", tmp_path / "films")
    moved = list(mimic_cxr.read(root, tmp_path / "films", given))
    assert next(each for each in moved if each.image_id == "a1") == Example(
        "a1",
        "50000002",
        tmp_path / "films/p10/p10000032/s50000002/a1.jpg",
        texts["a1"],
        ("No Finding",),
        "train",
        "PA",
        record="a1",
    )


def test_without_a_split_table_studies_are_drawn(root: Path) -> None:
    (root / "mimic-cxr-2.0.0-split.csv.gz").unlink()
    with pytest.raises(UsageError, match=r"no mimic-cxr-2\.0\.0-split\.csv\.gz, which split=given"):
        Prepared(root, "split=given")
    prepared = Prepared(root)
    assert prepared.info.protocol == "study"
    assert "No split table" in prepared.printed
    assert "h1" in prepared.rows


def test_tables_may_be_unpacked_and_rows_in_any_order(root: Path) -> None:
    packed = list(mimic_cxr.read(root))
    for path in root.glob("*.csv.gz"):
        header, *rows = gzip.decompress(path.read_bytes()).decode().splitlines()
        path.with_suffix("").write_text("\n".join([header, *sorted(rows, reverse=True)]) + "\n")
        path.unlink()
    unpacked = {each.image_id: each for each in mimic_cxr.read(root)}
    assert unpacked == {each.image_id: each for each in packed}


def test_one_section_of_the_reports(root: Path) -> None:
    found = Prepared(root, "sections=impression")
    assert found.rows["c1"]["sentences"] == ["clear"]
    # A report without headings is no impression.
    assert found.rejected["g1"] == "report has no impression section"
    found = Prepared(root, "sections=findings")
    assert found.rejected["c1"] == "report has no findings section"
    assert "i1" in found.rows
    both = {each.image_id: each for each in mimic_cxr.read(root) if isinstance(each, Example)}
    findings = {
        each.image_id: each
        for each in mimic_cxr.read(root, sections="findings")
        if isinstance(each, Example)
    }
    assert set(findings) < set(both)
    assert all(each.report and each.report in both[name].report for name, each in findings.items())


def test_the_text_of_r2gen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The findings are R2Gen's references; a word counts once for each image of its study."""
    texts = [
        "1. The heart is normal.\n\n 2. No  effusion at all..... at .",
        "The heart is ____ small.\n The lungs are clear: yes 1.5 cm. " + "Heart. " * 90,
    ]
    studies = [
        Study(
            *(10000001, 1000 + n, f" FINDINGS: {texts[n % 2]}\n\n IMPRESSION: Unused.", split),
            labels=("1", "", "", "1"),
            images={f"{split}{n}{view}": view for view in ("PA", "LATERAL")[: n % 3]},
        )
        for split, n in (*(("train", n) for n in range(20)), ("validate", 23), ("test", 26))
    ]
    write_tree(tmp_path / "texts/mimic", studies)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = Prepared(tmp_path / "texts/mimic", "text=r2gen", "sections=findings")
    records: dict[str, list[str]] = {"train": [], "validate": [], "test": []}
    for study in studies:
        records[study.split] += [texts[study.study % 2]] * len(study.images)
    # 10 images of 7 training studies have the second text, 9 images the first one.
    assert [records["train"].count(text) for text in texts] == [9, 10]
    expected = references_by_hand(records, mimic=True)
    split = PreparedDataset.open(tmp_path / "texts/out").split
    for name, given in (("train", "train"), ("val", "validate"), ("test", "test")):
        assert sorted(split(name).references) == sorted(expected[given])
    words = {word for text in expected["train"] for word in text.split()}
    assert {"heart", "small", "<unk>", "."} < words
    assert "normal" not in words
    assert max(len(text.split()) for text in expected["train"]) == 99
    assert found.info.r2gen is not None
    assert (found.info.r2gen.min_count, found.info.r2gen.max_words) == (10, 99)


def test_a_report_that_cannot_be_read(root: Path) -> None:
    path = root / "files/p10/p10000017/s50000003.txt"
    path.write_bytes(b"\n IMPRESSION: caf\xe9.")
    (rejected,) = [each for each in mimic_cxr.read(root) if each.image_id == "c1"]
    reason = "report file is not UTF-8 text: p10/p10000017/s50000003.txt"
    assert rejected == Rejected("c1", "50000003", reason)


def test_what_is_missing_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere: the folder does not exist"):
        mimic_cxr.read(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"reports=.*no\.zip: there is no such file or folder"):
        mimic_cxr.read(root, reports=tmp_path / "no.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty: none of the images .* p12/p12000002/s50000009"):
        list(mimic_cxr.read(root, tmp_path / "empty", root / "files"))
    with pytest.raises(UsageError, match="empty: none of the reports in the tables"):
        list(mimic_cxr.read(root, reports=tmp_path / "empty"))
    (tmp_path / "r.zip").write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"r\.zip: damaged archive"):
        list(mimic_cxr.read(root, reports=tmp_path / "r.zip"))
    (root / "mimic-cxr-2.0.0-chexpert.csv.gz").unlink()
    with pytest.raises(UsageError, match=r"no mimic-cxr-2\.0\.0-chexpert\.csv\.gz: put the tables"):
        mimic_cxr.read(root)


@pytest.mark.parametrize(
    ("table", "header", "row", "message"),
    [
        (
            "chexpert",
            ["subject_id", "study_id", "Mass"],
            [1, 2, 3],
            "'Mass' holds 3 in row 1: ",
        ),
        (
            "chexpert",
            ["subject_id", "study_id", "Mass"],
            [1, 2, "x"],
            "holds 'x' in row 1: a",
        ),
        ("chexpert", ["subject_id", "study"], [1, 2], "must have study_id and label columns"),
        ("split", ["dicom_id", "split"], ["a1", "holdout"], "unknown split 'holdout'"),
        ("split", ["dicom", "split"], ["a1", "test"], "must have dicom_id, split"),
        ("metadata", ["dicom_id", "subject_id", "study_id"], ["a", 1, 2], "'ViewPosition'"),
        (
            "metadata",
            ["dicom_id", "subject_id", "study_id", "ViewPosition"],
            ["a", 1, "", "PA"],
            "column study_id has empty cells",
        ),
        (
            "metadata",
            ["dicom_id", "subject_id", "study_id", "ViewPosition"],
            ["a", 1, "s5", "PA"],
            "cannot be read .*s5",
        ),
    ],
)
def test_wrong_tables(
    root: Path, table: str, header: list[str], row: list[object], message: str
) -> None:
    write_table(root / f"mimic-cxr-2.0.0-{table}.csv.gz", header, [row])
    with pytest.raises(UsageError, match=f"{table}.csv.gz.*{message}"):
        mimic_cxr.read(root)


def test_the_wrong_label_is_named(root: Path) -> None:
    """Not another one of its column, all of which is text because of it."""
    rows = [[1, 1, "1.0"], [1, 2, ""], [1, 3, "0"], [1, 4, "n.d."], [1, 5, "x"]]
    header = ["subject_id", "study_id", "Mass"]
    write_table(root / "mimic-cxr-2.0.0-chexpert.csv.gz", header, rows)
    with pytest.raises(UsageError, match=r"column 'Mass' holds 'n\.d\.' in row 4: a label is"):
        mimic_cxr.read(root)


def test_labels_in_any_spelling_of_numbers(root: Path) -> None:
    rows = [[1, 1, "1.0", "", 1], [1, 2, "", "", 0], [1, 3, "-1", "", -1]]
    header = ["subject_id", "study_id", "Mass", "Edema", "Fracture"]
    write_table(root / "mimic-cxr-2.0.0-chexpert.csv.gz", header, rows)
    labels = read_tables(root).labels
    assert labels.names == ["Mass", "Edema", "Fracture"]
    assert labels.values.tolist() == [[1, -2, 1], [-2, -2, 0], [-1, -2, -1]]
    assert labels.tags(2, (1, -1)) == ("Mass", "Fracture")


def test_damaged_tables(root: Path) -> None:
    path = root / "mimic-cxr-2.0.0-metadata.csv.gz"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UsageError, match=r"metadata\.csv\.gz: cannot be read"):
        mimic_cxr.read(root)
    write_table(path, ["dicom_id", "subject_id", "study_id", "ViewPosition"], [])
    with pytest.raises(UsageError, match="the table has no rows"):
        mimic_cxr.read(root)
