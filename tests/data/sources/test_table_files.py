from pathlib import Path

import pytest

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
