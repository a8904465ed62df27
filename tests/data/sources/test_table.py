import json
import tracemalloc
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymed.data.examples import Example, Rejected
from raymed.data.sources import table
from raymed.errors import UsageError

ROWS = [
    {"image": "a.png", "report": "Heart, normal.", "tags": "One; two|three", "study": "s"},
    {"image": "sub/../b.png", "report": "", "tags": "", "study": ""},
    {"image": "../c.png", "report": "x", "tags": "", "study": "s"},
    {"image": "/etc/c.png", "report": "x", "tags": "", "study": "s"},
    {"image": "", "report": "x", "tags": "", "study": "s"},
]


def write(folder: Path, kind: str, rows: list[dict[str, str]]) -> Path:
    path = folder / f"table.{kind}"
    if kind == "csv":
        quoted = [[f'"{cell}"' for cell in row.values()] for row in rows]
        path.write_text("\n".join(",".join(line) for line in [list(rows[0]), *quoted]) + "\n")
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_the_three_formats_agree(tmp_path: Path, kind: str) -> None:
    read = list(table.read(write(tmp_path, kind, ROWS)))
    outside = "image path is outside the images folder"
    assert read == [
        Example("a.png", "s", tmp_path / "a.png", "Heart, normal.", ("One", "two", "three")),
        Example("b.png", "b.png", tmp_path / "b.png", "", ()),
        Rejected("../c.png", "s", f"{outside}: ../c.png is not below {tmp_path}"),
        Rejected("/etc/c.png", "s", f"{outside}: /etc/c.png is not below {tmp_path}"),
        Rejected("", "s", "row has no image: row 5"),
    ]


def test_mapped_columns_and_another_images_folder(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    row = {"file": "a.png", "caption": "Text", "case": 7, "plane": "Axial", "where": "Chest, Lung"}
    path = write(tmp_path, "jsonl", [{**row, "set": "test", "angle": None}])
    columns = {
        "image": "file",
        "report": "caption",
        "study": "case",
        "tags": ["plane", "where"],
        "split": "set",
        "view": "angle",
    }
    assert list(table.read(path, images, columns)) == [
        Example("a.png", "7", images / "a.png", "Text", ("Axial", "Chest, Lung"), "test", None)
    ]


def test_tags_as_a_list(tmp_path: Path) -> None:
    path = write(tmp_path, "parquet", [{"image": "a", "report": "b", "tags": ["x; y", "z", None]}])
    (example,) = table.read(path)
    assert isinstance(example, Example)
    assert example.tags == ("x; y", "z")


def test_without_tags_they_are_the_frequent_words(tmp_path: Path) -> None:
    common = [f"w{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(600)]
    reports = [" ".join(common), " ".join(common[300:]) + ". Rare wzz.", "zzz zzy"]
    reports += [" ".join(f"q{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(420)) + "."]
    rows = [{"image": f"{n}.png", "report": text} for n, text in enumerate(reports)]
    counts: Counter[str] = Counter()
    for text in reports:
        counts.update(text.lower().replace(".", "").split())
    top = {word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:1000]}
    for example, text in zip(table.read(write(tmp_path, "csv", rows)), reports, strict=True):
        assert isinstance(example, Example)
        words = dict.fromkeys(text.lower().replace(".", "").split())
        assert example.tags == tuple(word for word in words if word in top)
    assert len(counts) > 1000


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"report": "rapport"}, r"table.csv: no column 'rapport'.*mean 'report'.*image, report"),
        ({"reports": "report"}, r"no field 'reports' \(did you mean 'report'\?\)"),
        ({"study": ["study", "tags"]}, "field study takes one column"),
        ({"tags": []}, "field tags takes one column"),
    ],
)
def test_wrong_columns(tmp_path: Path, columns: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        table.read(write(tmp_path, "csv", ROWS), columns=columns)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"image,text\na,b\n", "no column 'report' for field report"),
        ("t.csv", b"image,report\na,b,c\n", "line 2: 3 cells, but the header has 2"),
        ("t.csv", b'image,report\na,"b\n', "not CSV"),
        ("t.csv", b"image,image,report\na,b,c\n", "same name"),
        ("t.csv", b"image,report\n", "no rows"),
        ("t.csv", b"image,report\na,caf\xe9\n", r"byte 0xe9 at offset 18 \(line 2\)"),
        ("t.jsonl", b'{"image": 1}\n{"a"\n', "line 2: not JSON"),
        ("t.jsonl", b"[1]\n", "line 1: every line must be a JSON object"),
        ("t.parquet", b"PAR", "cannot be read as Parquet"),
        ("t.xlsx", b"", r"must end in one of \.csv, \.tsv, \.jsonl, \.json, \.parquet"),
    ],
)
def test_wrong_tables(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        table.read(tmp_path / name)


def test_missing_table_and_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no\.csv: cannot be read"):
        table.read(tmp_path / "no.csv")
    with pytest.raises(UsageError, match="images folder does not exist"):
        table.read(write(tmp_path, "csv", ROWS), tmp_path / "none")


def test_byte_order_mark_and_line_separators(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes('\ufeffimage,report\r\n"a.png","one\r\ntwo"\r\n'.encode())
    (example,) = table.read(path)
    assert isinstance(example, Example)
    assert (example.image_id, example.report) == ("a.png", "one\r\ntwo")


def test_a_folder_of_parquet_files_is_a_table(tmp_path: Path) -> None:
    folder = tmp_path / "table.parquet"
    folder.mkdir()
    for number in (1, 0):
        rows = [{"image": f"{number}{row}.png", "report": "Heart."} for row in range(2500)]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"part-{number}.parquet")
    read = [example.image_id for example in table.read(folder)]
    assert read == [f"{number}{row}.png" for number in range(2) for row in range(2500)]


def test_a_table_is_never_held_whole(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        path = tmp_path / f"{rows}.jsonl"
        with path.open("w") as file:
            for row in range(rows):
                text = "heart " * 40 + chr(97 + row % 26)
                file.write(json.dumps({"image": f"{row}.png", "report": text}) + "\n")
        tracemalloc.start()
        assert sum(1 for _ in table.read(path)) == rows
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    few, many = peak(200), peak(4000)
    assert many < few + 100_000, "3,800 rows more are 1.0 MB of text"
