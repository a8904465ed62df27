"""Tables with several images in a row, or with the images themselves."""

import io
import json
import shlex
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from raymed.cli import main
from raymed.data.examples import Example, Rejected
from raymed.data.images import read_image
from raymed.data.limits import ImageError
from raymed.data.prepare import prepare_source
from raymed.data.sources import load_settings, table
from raymed.errors import UsageError
from tests.support import dicom_files

REPORT = "The heart is normal."


def image(value: int, kind: str = "PNG") -> bytes:
    """The content of an image file of one grey value."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8), value).save(buffer, kind)
    return buffer.getvalue()


def write(
    path: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None, **options: Any
) -> Path:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows, schema), path, **options)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def found(path: Path, **options: Any) -> list[tuple[str, str, str | None, Any]]:
    """Image id, study, view and image of all examples; fails on a rejected one."""
    examples = list(table.read(path, **options))
    assert all(isinstance(each, Example) for each in examples), examples
    return [(e.image_id, e.study, e.view, e.image) for e in examples if isinstance(e, Example)]


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet"])
def test_several_columns_and_lists_of_paths(tmp_path: Path, kind: str) -> None:
    rows = [
        {"pa_path": "a.png", "lateral": "b.png", "report": REPORT, "study": 1},
        {"pa_path": "c.png", "lateral": None, "report": REPORT, "study": 2},
    ]
    path = write(tmp_path / f"t.{kind}", rows)
    assert found(path, columns={"image": "pa_path,lateral"}, needed=["view"]) == [
        ("a.png", "1", "frontal", tmp_path / "a.png"),
        ("b.png", "1", "lateral", tmp_path / "b.png"),
        ("c.png", "2", "frontal", tmp_path / "c.png"),
    ]
    rows = [
        {"image": ["a.png", "b.png"], "report": REPORT, "view": ["PA", "LL"]},
        {"image": ["c.png"], "report": REPORT, "view": ["AP"]},
    ]
    assert found(write(tmp_path / f"u.{kind}", rows)) == [
        ("a.png", "a.png", "PA", tmp_path / "a.png"),
        ("b.png", "a.png", "LL", tmp_path / "b.png"),
        ("c.png", "c.png", "AP", tmp_path / "c.png"),
    ]


def test_lists_in_csv_and_one_view_for_all(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        f"image,report,view\n\"['a.png', 'b;c.png']\",{REPORT},PA\n\"[x].png\",{REPORT},LL\n"
    )
    assert found(path) == [
        ("a.png", "a.png", "PA", tmp_path / "a.png"),
        ("b;c.png", "a.png", "PA", tmp_path / "b;c.png"),
        ("[x].png", "[x].png", "LL", tmp_path / "[x].png"),
    ]


def test_rows_and_images_that_cannot_be_used(tmp_path: Path) -> None:
    rows = [
        {"image": [], "report": REPORT, "study": "s", "tags": "x"},
        {"image": ["../a.png", "b.png"], "report": REPORT, "study": "", "tags": "x"},
        {"image": ["c.png", "d.png"], "report": REPORT, "study": "", "tags": "[1 +]"},
    ]
    empty, outside, good, *tagless = table.read(write(tmp_path / "t.json", rows))
    assert empty == Rejected("", "s", "row has no image: row 1")
    assert isinstance(outside, Rejected)
    assert outside.reason.startswith("image path is outside the images folder")
    assert isinstance(good, Example)
    assert (good.image_id, good.study) == ("b.png", "b.png")
    assert [(each.image_id, each.study) for each in tagless] == [("c.png",) * 2, ("d.png", "c.png")]
    assert all(
        isinstance(each, Rejected) and each.reason.startswith("tags cannot be read")
        for each in tagless
    )


STORED = {
    "struct": lambda content, name: {"bytes": content, "path": name},
    "binary": lambda content, name: content,  # noqa: ARG005
}

SCHEMAS = {
    form: pa.schema({"report": pa.string(), "image": kind})
    for form, kind in (
        ("struct", pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        ("binary", pa.binary()),
    )
}


@pytest.mark.parametrize("form", STORED)
def test_images_in_a_column(tmp_path: Path, form: str) -> None:
    contents = [image(n, "PNG" if n % 2 else "JPEG") for n in range(40)]
    rows = [
        {"report": REPORT, "image": STORED[form](content, f"{n}.png"), "id": n}
        for n, content in enumerate(contents)
    ]
    read = found(write(tmp_path / "t.parquet", rows, row_group_size=7), columns={"study": "id"})
    names = [f"{n}.png" if form == "struct" else f"row-{n + 1}" for n in range(40)]
    assert read == [
        (name, str(n), None, content)
        for n, (name, content) in enumerate(zip(names, contents, strict=True))
    ]


def test_images_in_lists_and_paths_that_repeat(tmp_path: Path) -> None:
    films = [image(n) for n in range(5)]
    rows = [
        {"report": REPORT, "images": [{"bytes": film, "path": "image.png"} for film in films[:2]]},
        {"report": REPORT, "images": [{"bytes": films[2], "path": "image.png"}]},
        {"report": REPORT, "images": [{"bytes": None, "path": "file.png"}]},
        {"report": REPORT, "images": [{"bytes": film, "path": None} for film in films[3:]]},
    ]
    read = found(write(tmp_path / "t.parquet", rows), columns={"image": "images"})
    assert [content for *_, content in read] == [*films[:3], tmp_path / "file.png", *films[3:]]
    assert [study for _, study, *_ in read] == [
        *("image.png", "image.png", "image.png#2", "file.png", "row-4", "row-4")
    ]
    names = [name for name, *_ in read]
    assert len(set(names)) == len(names)
    assert (names[0], names[2], names[3]) == ("image.png", "image.png#2", "file.png")


def test_stored_images_are_decoded_like_files(tmp_path: Path) -> None:
    pixels = np.arange(64, dtype=np.uint16).reshape(8, 8)
    path = dicom_files.saved(tmp_path / "a.dcm", dicom_files.dataset(pixels))
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "a.tif")
    for name in ("a.dcm", "a.tif"):
        expected = read_image(tmp_path / name, 8)
        assert expected.max() > expected.min()
        assert (read_image((tmp_path / name).read_bytes(), 8) == expected).all()
    with pytest.raises(ValueError, match="not a PNG, JPEG, TIFF or DICOM image"):
        read_image(b"", 8)
    content = path.read_bytes()
    for end, reason in ((400, "DICOM file has no image"), (-1, "DICOM image is truncated")):
        path.write_bytes(content[:end])
        for damaged in (path, content[:end]):
            with pytest.raises(ImageError, match=reason):
                read_image(damaged, 8)


def test_a_dataset_from_a_folder_with_a_file_for_each_split(tmp_path: Path) -> None:
    """As Hugging Face names the files; a damaged image is left out, with its row's name."""
    sizes = {"train": 5, "validation": 2, "test": 3}
    for split, size in sizes.items():
        rows = [
            {
                "image": {"bytes": image(10 * n + 9), "path": None},
                "report": f"Heart {split}.",
                "tags": ["a" if n else "b"],
            }
            for n in range(size)
        ]
        rows[-1]["image"] = {"bytes": image(1)[:30], "path": "damaged.png"}
        write(tmp_path / "data" / f"{split}-00000-of-00001.parquet", rows)
    console = Console(width=200, force_terminal=False)
    with console.capture() as capture:
        settings = load_settings("table", [f"out={tmp_path}/out", "image_size=8"])
        info = prepare_source("table", str(tmp_path / "data"), settings, console)
    assert info.protocol == "given"
    assert info.counts == {"train": 4, "val": 1, "test": 2}
    assert "Column split: from the names of the Parquet files" in capture.get()
    rejected = pq.read_table(tmp_path / "out/rejected.parquet").to_pylist()
    # Files are read in the order of their names: test, train, validation.
    assert [row["image_id"] for row in rejected] == [
        "damaged.png",
        "damaged.png#8",
        "damaged.png#10",
    ]
    (part,) = (tmp_path / "out").glob("train-*.parquet")
    written = pq.read_table(part).to_pylist()
    assert [set(row["pixels"]) for row in written] == [{10 * n + 9} for n in range(4)]
    assert [row["image_id"] for row in written] == [f"row-{n}" for n in range(4, 8)]


@pytest.mark.parametrize("form", STORED)
def test_damaged_and_missing_images_first(tmp_path: Path, form: str) -> None:
    """The first images of a table decide nothing alone; each is judged when it is decoded."""
    contents = [None, b"", image(1)[3:], image(2)]
    rows = [
        {"report": REPORT, "image": content if content is None else STORED[form](content, None)}
        for content in contents
    ]
    folder = tmp_path / "data"
    write(folder / "0.parquet", [{**row, "image": None} for row in rows], schema=SCHEMAS[form])
    write(folder / "1.parquet", rows, schema=SCHEMAS[form])
    examples = list(table.read(folder))
    assert [each.reason for each in examples if isinstance(each, Rejected)] == [
        f"row has no image: row {number}" for number in range(1, 6)
    ]
    read = [(each.image_id, each.image) for each in examples if isinstance(each, Example)]
    assert read == [(f"row-{number}", contents[number - 5]) for number in (6, 7, 8)]


def test_structs_with_paths_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As Hugging Face writes a dataset whose images are not embedded."""
    (tmp_path / "a.png").write_bytes(image(1))
    rows = [{"report": REPORT, "image": {"bytes": None, "path": name}} for name in ("a.png", None)]
    path = write(tmp_path / "t.parquet", rows, schema=SCHEMAS["struct"])
    first, second = table.read(path)
    assert isinstance(first, Example)
    assert (first.image_id, first.image) == ("a.png", tmp_path / "a.png")
    assert second == Rejected("", "", "row has no image: row 2")
    assert main(["prepare", "table", str(path)]) == 0
    assert f"Images: 1 of the first 1 were found in {tmp_path}" in capsys.readouterr().out


def test_a_damaged_file_of_a_folder_is_named(tmp_path: Path) -> None:
    rows = [{"report": REPORT, "image": image(n)} for n in range(3)]
    write(tmp_path / "data/0.parquet", rows)
    content = write(tmp_path / "data/1.parquet", rows).read_bytes()
    (tmp_path / "data/1.parquet").write_bytes(content[:-50])
    with pytest.raises(UsageError, match=r"1\.parquet: cannot be read as Parquet"):
        table.read(tmp_path / "data")


@pytest.mark.parametrize("form", STORED)
def test_bytes_that_are_no_images_are_refused(tmp_path: Path, form: str) -> None:
    rows = [{"report": REPORT, "image": STORED[form](b"\x93NUMPY\0\0\xff", "a.npy")}]
    path = write(tmp_path / "t.parquet", rows)
    message = (
        r"t\.parquet: column 'image' holds bytes that are not a PNG.*\(the first ones are 93 4e"
    )
    with pytest.raises(UsageError, match=message):
        table.read(path)


def test_paths_stored_as_bytes_are_paths(tmp_path: Path) -> None:
    rows = [{"report": b"Heart.", "image": "é.png".encode()}]
    assert found(write(tmp_path / "t.parquet", rows)) == [
        ("é.png", "é.png", None, tmp_path / "é.png")
    ]


def test_images_are_never_held_together(tmp_path: Path) -> None:
    """Neither a table nor a group of its rows is held, but the pages of a column, which a reader
    must have whole.
    """
    noise = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8).tobytes()
    png = image(3)
    path = tmp_path / "t.parquet"
    rows = [{"report": REPORT, "image": {"bytes": png + noise, "path": f"{n}"}} for n in range(400)]
    write(path, rows, row_group_size=400, use_dictionary=False, max_rows_per_page=16)
    del rows
    assert path.stat().st_size > 39_000_000
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    arrow, images = 0, 0
    for example in table.read(path):
        assert isinstance(example, Example)
        images += len(example.image)  # type: ignore[arg-type]
        arrow = max(arrow, pa.total_allocated_bytes() - before)
    python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert images == 400 * (len(png) + 100_000)
    assert python < 8_000_000
    assert arrow < 8_000_000


def test_proposals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports = [REPORT, "A nodule in the left lung is seen.", "The left lung is clear."]
    rows = [
        {
            "frontal": {"bytes": image(n), "path": f"{n}.png"},
            "lateral": {"bytes": image(n), "path": None},
            "caption": reports[n % 3],
        }
        for n in range(9)
    ]
    path = write(tmp_path / "t.parquet", rows)
    assert main(["prepare", "table", str(path)]) == 0
    *lines, command = capsys.readouterr().out.splitlines()
    assert "  image   from frontal: images stored in the table" in lines
    assert shlex.split(command)[3:] == [
        *(str(path), "out=data/t", "columns.image=frontal,lateral", "columns.report=caption")
    ]
    words = [*shlex.split(command)[1:4], *shlex.split(command)[5:], f"out={tmp_path}/out"]
    assert main([*words, "workers=0", "image_size=8"]) == 0
    info = json.loads((tmp_path / "out/dataset.json").read_text())
    assert (info["prepared"]["images"], info["prepared"]["studies"]) == (18, 9)


def test_proposals_for_lists_of_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "films").mkdir()
    (tmp_path / "films/1.png").write_bytes(image(1))
    rows = [{"paths": ["1.png", "2.png"], "text": REPORT}]
    assert main(["prepare", "table", str(write(tmp_path / "t.json", rows))]) == 0
    *lines, command = capsys.readouterr().out.splitlines()
    assert "  image   from paths: 1.png, 2.png" in lines
    assert f"Images: 1 of the first 2 were found in {tmp_path}/films" in lines
    assert {"columns.image=paths", f"images={tmp_path}/films"} < set(shlex.split(command))
