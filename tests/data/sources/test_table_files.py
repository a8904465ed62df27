import json
import tracemalloc
from pathlib import Path

import pytest

from raymed.data.sources import table_files
from raymed.data.sources.table_files import TableRows, csv_columns
from raymed.errors import UsageError

ROW = {"image": "a.png", "report": 'One, two; "three" | four\nfive', "tags": "x;y"}


def csv_text(separator: str, end: str = "\n") -> str:
    quoted = [f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in ROW.values()]
    return end.join([separator.join(ROW), separator.join(quoted), ""])


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_separator_is_recognised(tmp_path: Path, separator: str, end: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(csv_text(separator, end), newline="")
    assert list(TableRows(path)) == [ROW]
    for named in (f"sep={separator}{end}", f"SEP={separator}{end}", end):
        path.write_text(f"\ufeff{named}{csv_text(separator, end)}", newline="")
        assert list(TableRows(path)) == [ROW]


def test_names_in_quotes_may_hold_other_separators(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('image;"finding, left, or right\nside, too";report\n1;2;3\n')
    assert csv_columns(path) == ["image", "finding, left, or right\nside, too", "report"]
    path.write_text("image\treport, a;b\n1\t2\n")
    assert csv_columns(path) == ["image\treport", "a;b"], "two by a tab, two by a comma"


def test_what_a_spreadsheet_leaves_behind(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("image, report ,,\na.png,b,,\n,,,\nc.png,d,,,,\n\ne.png,f,x,\ng.png\n,,,\n")
    rows = [("a.png", "b"), ("c.png", "d"), ("e.png", "f"), ("g.png", None)]
    assert list(TableRows(path)) == [{"image": a, "report": b} for a, b in rows]
    path.write_text(",image,report\n0,a.png,b\n")
    assert list(TableRows(path)) == [{"image": "a.png", "report": "b"}]


def test_a_tsv(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text(csv_text("\t"))
    assert list(TableRows(tmp_path / "t.tsv")) == [ROW]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image:report\na:b\n", r"only one column, 'image:report'; .* comma, a semicolon, a tab"),
        ('"image,report"\n"a,b"\n', r"only one column, 'image,report'"),
        ("a;b\n1;2;3\n", r"line 2: 3 cells, but the header has 2; .* quoted"),
        ("sep=;\na;b\n1;2;3\n", r"line 3: 3 cells"),
        ('a;"b\n1;2\n', "not CSV"),
        ("a,b,a\n1,2,3\n", "same name, 'a'"),
    ],
)
def test_damaged_csv(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content)
    with pytest.raises(UsageError, match=message):
        list(TableRows(path))


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_list(tmp_path: Path, indent: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """However its text is cut into chunks."""
    rows = [{**ROW, "number": n, "list": [1, {"a": "]}, ["}]} for n in range(3)]
    path = tmp_path / "t.json"
    path.write_text(f"\ufeff {json.dumps(rows, indent=indent)}\n", encoding="utf-8")
    for chunk in (1, 7, 1000):
        monkeypatch.setattr(table_files, "_JSON_CHUNK", chunk)
        assert list(TableRows(path)) == rows
    path.write_text(" [ ] ")
    assert list(TableRows(path)) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"train": []}', "is not a table: a .json file must hold a list of records"),
        ('{"image": 1}\n{"image": 2}', "if each line is a row, rename it to .jsonl"),
        ("", "must hold a list of records"),
        ('[{"a": 1}, 2]', "record 2: every record must be a JSON object"),
        ('[{"a": 1}, {"a" 2}]', "record 2: not JSON: Expecting ':' delimiter"),
        ('[{"a": 1}, ]', "record 2: not JSON"),
        ('[{"a": 1} {"a": 2}]', "after record 1, there must be a comma or the end .* not {"),
        ('[{"a": 1}', "after record 1, .* not the end of the file"),
        ('[{"a": 1}, {"a"', "record 2: not JSON"),
        ("[", "record 1: not JSON"),
        ('[{"a": 1}]\n[{"a": 2}]', r"after the list, the file must end, but there is \["),
        ('[{"a": ' + "1" * 5000 + "}]", "record 1: not JSON: Exceeds the limit"),
    ],
)
def test_damaged_json_lists(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=message):
        list(TableRows(path))


def test_a_json_list_is_never_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps([{"report": "heart " * 1000}] * 2000))
    tracemalloc.start()
    assert sum(1 for _ in TableRows(path)) == 2000
    highest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 12_000_000
    assert highest < 6_000_000
    # A record without an end is not looked for in all of the file.
    path.write_text('[{"a": "' + "x" * 1_000_000)
    monkeypatch.setattr(table_files, "_JSON_CHUNK", 1000)
    monkeypatch.setattr(table_files, "_JSON_RECORD", 10_000)
    tracemalloc.start()
    with pytest.raises(UsageError, match="record 1: not JSON"):
        list(TableRows(path))
    assert tracemalloc.get_traced_memory()[1] < 500_000
    tracemalloc.stop()
