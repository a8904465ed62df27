import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raymed import report_sets
from raymed.data.r2gen_text import IU_XRAY
from raymed.errors import UsageError
from raymed.report_sets import Reading, ReportSet, read_reports
from raymed.report_text import NONE, PAPER, TextRule, r2gen


def read(path: Path, side: Any = "report", **options: Any) -> ReportSet:
    return read_reports(str(path), Reading(side, path.parent, **options))


R2GEN = r2gen(IU_XRAY)


def written(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("rule", "report", "sentences", "known"),
    [
        (PAPER, "The heart is normal.", ["the heart is normal"], True),
        (PAPER, "the heart is normal", ["the heart is normal"], False),
        (PAPER, ["The heart", "is normal."], ["the heart", "is normal"], True),
        (PAPER, ["The heart is normal."], ["the heart is normal"], False),
        (PAPER, "", [], False),
        (NONE, "heart  is normal .\nlungs clear .", ["heart is normal .", "lungs clear ."], True),
        (NONE, "heart is normal . lungs", ["heart is normal .", "lungs"], True),
        (NONE, ". heart .", [".", "heart ."], True),
        (NONE, "heart is normal .", ["heart is normal ."], True),
        # Their words are "normal." and "clear.": where sentences end is not known.
        (NONE, "heart is normal. lungs clear.", ["heart is normal. lungs clear."], False),
        (NONE, ["heart . is", "normal"], ["heart . is", "normal"], True),
        (NONE, "", [""], False),
        (R2GEN, "1. Heart normal. 2. Clear (X-ray)", ["heart normal .", "clear x-ray ."], True),
        # These are R2Gen's words, so the last stop is not missing but was cut.
        (R2GEN, "heart <unk> . clear", ["heart <unk> .", "clear"], True),
        (R2GEN, ["Heart normal.", "No effusion."], ["heart normal .", "no effusion ."], True),
    ],
)
def test_sentences(
    tmp_path: Path, rule: TextRule, report: Any, sentences: Any, known: bool
) -> None:
    found = read(written(tmp_path / "t.json", {"a": report}), rule=rule)
    assert (list(found.sentences), found.has_sentences) == ([sentences], known)


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_studies(tmp_path: Path, kind: str) -> None:
    """A study may be called 0; without one, an image is a study of its own."""
    cells = (0, None, "n/a", "", 7.0)
    rows: list[dict[str, Any]] = [
        {"id": f"i{number}", "study": cell, "report": "clear"} for number, cell in enumerate(cells)
    ]
    rows.append({"id": "i5", "study": None, "study_id": 8, "report": "clear"})
    text = json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows))
    found = read(written(tmp_path / f"t.{kind}", text))
    assert list(found.ids) == ["i0", "i1", "i2", "i3", "i4", "i5"]
    assert list(found.studies) == ["0", "i1", "i2", "i3", "7", "8"]


def test_splits_of_annotation_files_have_any_of_their_names(tmp_path: Path) -> None:
    content = {
        "validation": [{"id": 1, "report": "a"}],
        "train": [{"id": 2, "report": "b", "split": "validate"}, {"id": 3, "report": "c"}],
        "holdout": [{"id": 4, "report": "d"}],
    }
    path = written(tmp_path / "annotation.json", content)
    for split, ids in (("val", ["1", "2"]), ("train", ["3"]), ("holdout", ["4"])):
        assert list(read(path, "reference", split=split).ids) == ids


def test_lines_of_a_text_file(tmp_path: Path) -> None:
    found = read(written(tmp_path / "t.txt", "Heart.\r\n\n\u2028Lungs.\n"))
    assert list(found.sentences) == [["heart"], [], ["lungs"]]
    assert list(found.ids) == ["1", "2", "3"]
    with pytest.raises(UsageError, match=r"t\.txt: has no reports"):
        read(written(tmp_path / "t.txt", ""))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": {"b": "x" * 999}}, "the report of a must be a text or a list of texts, not .{60}$"),
        ({"a": "b", "c": [{"caption": "d"}]}, "the report of c must be a text or a list of texts"),
        ({" ": "b"}, "a report has no id: 'b'"),
        ([{"id": None, "report": "b"}], "a report has no id: 'b'"),
        ([{"id": 1, "report": "b"}, 2], "record 2: every record must be a JSON object"),
        ([{"id": 1}], "has no column report or .*; its columns are id. Name .* report=COLUMN"),
        ([{"id": i, "report": "b"} for i in (1, "2", 2, "1", 3)], "several reports: 2, such as 1;"),
        ("3", "must be {id: report} or a list of records"),
        ({"a": "\ud800"}, "cannot be read: .*surrogates"),
        ({}, "has no reports"),
        ([], "has no reports"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(UsageError, match=r"t\.json.*" + message):
        read(written(tmp_path / "t.json", content), rule=NONE)


def test_a_full_disk_is_not_blamed_on_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    class Writer:
        def __enter__(self) -> "Writer":
            return self

        __exit__ = lambda *_: None  # noqa: E731
        write_batch = full

    monkeypatch.setattr(pa.ipc, "new_file", lambda *_: Writer())
    message = r"cannot write a temporary file \(No space left on device\); free disk space there"
    with pytest.raises(UsageError, match=message):
        read(written(tmp_path / "t.json", {"a": "b"}))


def as_lines(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("kind", "dump"),
    [
        ("txt", lambda rows: "\n".join(row["report"] for row in rows)),
        ("json", json.dumps),
        ("jsonl", as_lines),
    ],
)
def test_reports_are_not_held_in_memory(
    tmp_path: Path, kind: str, dump: Callable[[Any], str]
) -> None:
    # Once before, since modules that are loaded then stay in memory.
    rows = [{"id": str(n), "report": "heart lungs " * 100} for n in range(6000)]
    read(written(tmp_path / f"few.{kind}", dump(rows[:9])), rule=NONE)
    path = written(tmp_path / f"t.{kind}", dump(rows))
    assert path.stat().st_size > 7_000_000
    del rows
    tracemalloc.start()
    reports = read(path, rule=NONE)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(reports) == 6000
    # A megabyte of a JSON list at a time, several times while it is decoded. Read whole, the text
    # and the reports would take twice the size of the file.
    assert most < 9_000_000


def test_the_same_file_twice_in_one_folder(tmp_path: Path) -> None:
    """Reading it again does not write over what is mapped."""
    path = written(tmp_path / "t.txt", "a\n" * 1000)
    first = read(path)
    second = read(written(path, "b\n"))
    assert set(map(tuple, first.sentences)) == {("a",)}
    assert list(second.sentences) == [["b"]]
    assert report_sets.BLOCK < 1000
