import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from raymed.cli import main

REPORT = "The heart is of normal size and the lungs are clear. See finding"
SPLITS = ["train"] * 8 + ["validate"] * 2 + ["test"] * 2


def proposed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[str], list[str]]:
    """What is said of each column, and the command as the shell would divide it."""
    assert main(["prepare", "table", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    return lines[:-1], shlex.split(lines[-1])


def follow(command: list[str], out: Path) -> dict[str, Any]:
    """Run the command as it was proposed, but for where it writes."""
    settings = [text for text in command[1:] if not text.startswith("out=")]
    assert len(settings) == len(command) - 2
    assert main([*settings, f"out={out}", "workers=0", "image_size=8"]) == 0
    return json.loads((out / "dataset.json").read_text())


def images(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        Image.new("L", (8, 8), number).save(folder / name)


def test_columns_with_names_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels, reports in two parts, a file without its suffix, all under other names."""
    images(tmp_path / "png files", *(f"{n:03}.png" for n in range(12)))
    (tmp_path / "empty").mkdir()
    lines = ['Age;dicom_id;"Findings";IMPRESSION;"Edema, mild";Mass;fold;StudyID;ViewPosition']
    for n, split in enumerate(SPLITS):
        lines.append(f'{40 + n};{n};"{REPORT} {"abc"[n % 3]}";{REPORT};{n % 2};{1 - n % 2}')
        lines[-1] += f";{split};{n // 2};{'PA' if n % 2 else 'LATERAL'}"
    path = tmp_path / "mimic.csv"
    path.write_text("\n".join(lines) + "\n")
    said, command = proposed(capsys, str(path))
    assert command == [
        *("raymed", "prepare", "table", str(path), "out=data/mimic"),
        f"images={tmp_path}/png files",
        "columns.image=dicom_id",
        "columns.report=Findings,IMPRESSION",
        'columns.tags=["Edema, mild", "Mass"]',
        *("columns.study=StudyID", "columns.split=fold", "columns.view=ViewPosition"),
    ]
    assert "  report  from Findings: text, 14 words per cell on average" in said
    assert "  tags    from Edema, mild: labels, 0, 1" in said
    assert "  split   from fold: train, validate, test" in said
    assert "  not used: Age: 40, 41, 42, ..." in said
    assert f"Images: 12 of the first 12 were found in {tmp_path}/png files" in said
    info = follow(command, tmp_path / "out")
    assert info["counts"] == {"train": 8, "val": 2, "test": 2}
    assert (info["prepared"]["unique_tags"], info["prepared"]["studies"]) == (2, 6)
    assert not (tmp_path / "data").exists()


def test_columns_that_bear_the_fields_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images(tmp_path, *(f"{n}.png" for n in range(12)))
    rows = [
        {"image": f"{tmp_path}/{n}.png", "report": REPORT, "tags": "mass, edema" if n % 2 else "ok"}
        for n in range(12)
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said, command = proposed(capsys, str(path))
    assert command == [*("raymed", "prepare", "table", str(path), "out=data/t", "tag_separator=,")]
    assert "  report  from report: text, 13 words per cell on average" in said
    assert follow(command, tmp_path / "out")["prepared"]["unique_tags"] == 3


def test_what_is_given_stays_and_what_is_not_found_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images(tmp_path / "elsewhere", "a.png")
    path = tmp_path / "t.csv"
    path.write_text("picture,words\na,b\n")
    said, command = proposed(capsys, str(path))
    assert "No column looks like the image: give it as columns.image=COLUMN." in said
    assert {"columns.image=COLUMN", "columns.report=COLUMN"} < set(command)
    given = ["columns.image=picture", "columns.report=words", f"images={tmp_path}"]
    said, command = proposed(capsys, str(path), *given)
    assert f"'a' was not found below {tmp_path}: give images=FOLDER." in said
    assert {*given} < set(command)
    assert main(["prepare", "table", str(path), "columns.image=pictures"]) == 2
    assert "did you mean 'picture'?" in capsys.readouterr().err


def test_only_the_first_rows_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.jsonl"
    row = json.dumps({"image": "a.png", "report": REPORT}) + "\n"
    path.write_text(row * 1000 + "not JSON\n")
    proposed(capsys, str(path))
    path.write_text(row * 999 + "not JSON\n")
    assert main(["prepare", "table", str(path)]) == 2
    assert "line 1000: not JSON" in capsys.readouterr().err
