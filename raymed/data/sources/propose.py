"""Proposing how a table is to be prepared, from the names of its columns and what they hold."""

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from raymed.data.limits import ImageError
from raymed.data.sources.image_folder import ImageFolder
from raymed.data.sources.survey import SAMPLE, Column, survey
from raymed.data.sources.table import FIELDS, chosen_columns
from raymed.data.sources.table_files import TableRows
from raymed.errors import UsageError
from raymed.sections import PrepareConfig

_NAMES = {
    "image": "image imagepath path imagefile filepath filename file imagename imageindex imageid "
    "img imgpath dicompath dicomid",
    "report": "report reporttext fullreport radiologyreport text caption narrative description",
    "tags": "tags tag labels label findinglabels keywords problems",
    "study": "study studyid studyuid studyinstanceuid accession accessionnumber case caseid exam "
    "examid patient patientid subject subjectid",
    "split": "split set subset partition phase",
    "view": "view viewposition projection position",
}
"""Field -> the names that people give its column, in lower case and letters alone, best first."""
_PARTS = ("findings", "impression", "conclusion")
"""Names of columns that hold a report together, in the order in which it is read."""
_REPORT_WORDS = 4
"""Words that the mean cell of a column has at least which is taken for reports by content."""
_FOLDERS = 200
"""Folders beside the table that are tried for the images."""


def propose(path: Path, settings: PrepareConfig) -> list[str]:
    """Return lines that say what each column of a table would be, and the command that does it.

    Args:
        path: the table, of which the first `SAMPLE` rows are looked at.
        settings: what is decided already: its columns and images folder are kept.

    Raises:
        UsageError: the table cannot be read, has no rows, or lacks a column that is named.
    """
    rows = TableRows(path)
    columns = survey(islice(rows, SAMPLE), lambda _: False)
    if not columns:
        raise UsageError(f"{path}: the table has no rows")
    given = chosen_columns(path, list(columns), settings.columns, needed=settings.columns)
    fields = _guess(columns, given)
    lines = [
        f"{path}, by the names of its columns and what its first rows hold (up to {SAMPLE:,}):"
    ]
    taken = [name for names in fields.values() for name in names]
    for field in FIELDS:
        for name in fields.get(field, []):
            lines.append(f"  {field:7} from {name}: {_described(columns[name])}")
    for name in columns:
        if name not in taken:
            lines.append(f"  left alone: {name}: {_described(columns[name])}")
    command = ["raymed", "prepare", "table", str(path), f"out={settings.out}"]
    for field in ("image", "report"):
        if field not in fields:
            lines.append(f"No column looks like the {field}: name it as columns.{field}=COLUMN.")
            command.append(f"columns.{field}=COLUMN")
    if "tags" not in fields:
        lines.append("No column looks like tags: they would be the reports' most frequent words.")
    if "image" in fields:
        lines += _add_images(path, columns[fields["image"][0]], settings, command)
    command += [
        f"columns.{field}={_written(names)}" for field, names in fields.items() if names != [field]
    ]
    separator = settings.tag_separator or _separator([columns[n] for n in fields.get("tags", [])])
    command += [f"tag_separator={separator}"] if separator else []
    return [*lines, "To prepare it (see raymed prepare --help):", "  " + shlex.join(command)]


def _guess(
    columns: Mapping[str, Column], given: Mapping[str, Sequence[str]]
) -> dict[str, Sequence[str]]:
    """Field -> its columns, in the order of `FIELDS`; without those for which none is likely."""
    fields = {field: list(names) for field, names in given.items()}
    free = [
        column
        for name, column in columns.items()
        if column.filled and not any(name in names for names in given.values())
    ]
    likely = {
        "image": lambda: (
            _first([c for c in free if 2 * c.files > c.filled], "image")
            or _first(free, "image", named=True)
        ),
        "split": lambda: _first([c for c in free if c.is_split], "split"),
        "view": lambda: _first([c for c in free if c.is_view], "view"),
        "study": lambda: _first(free, "study", named=True),
        "tags": lambda: (
            _first([c for c in free if not c.is_label], "tags", named=True)
            or [c for c in free if c.is_label]
        ),
        "report": lambda: _reports([c for c in free if not c.is_label]),
    }
    for field, find in likely.items():
        if field not in fields and (found := find()):
            fields[field] = [column.name for column in found]
            free = [column for column in free if column not in found]
    return {field: fields[field] for field in FIELDS if field in fields}


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _first(columns: Sequence[Column], field: str, named: bool = False) -> list[Column]:
    """The column with the best name for a field; none of another name if it must be ``named``."""
    names = _NAMES[field].split()
    ranked = sorted(columns, key=lambda c: (*names, _plain(c.name)).index(_plain(c.name)))
    return [c for c in ranked if not named or _plain(c.name) in names][:1]


def _reports(columns: Sequence[Column]) -> list[Column]:
    whole = _first(columns, "report", named=True)
    parts = [c for part in _PARTS for c in columns if _plain(c.name) == part]
    long = [c for c in columns if c.words >= _REPORT_WORDS * c.filled]
    return whole or parts or sorted(long, key=lambda c: -c.words / c.filled)[:1]


def _described(column: Column) -> str:
    if not column.filled:
        return "empty"
    if column.is_label:
        return "labels, " + ", ".join(column.values)
    if column.words >= _REPORT_WORDS * column.filled:
        return f"texts of {column.words / column.filled:.0f} words on average"
    shown = [value[:60] for value in column.values]
    return ", ".join(shown[:3]) + (", ..." if len(shown) > 3 else "")


def _separator(tags: Sequence[Column]) -> str | None:
    return "," if any(column.seems_undivided for column in tags) else None


def _written(names: Sequence[str]) -> str:
    """Columns as `raymed prepare` takes them: a list where a name has a comma."""
    return (
        json.dumps(names, ensure_ascii=False) if any("," in n for n in names) else ",".join(names)
    )


def _add_images(
    path: Path, column: Column, settings: PrepareConfig, command: list[str]
) -> Iterator[str]:
    """Add the images folder to the command, and say how many of the first names are files."""
    folders = [Path(settings.images)] if settings.images else list(_folders(path, column))
    found = {folder: _found(folder, column) for folder in folders}
    best = max(found, key=lambda folder: found[folder])
    if not found[best]:
        tried = ", ".join(str(folder) for folder in folders[:3])
        yield f"{next(iter(column.values))!r} is no file below {tried}: give images=FOLDER."
        command.append(f"images={settings.images or 'FOLDER'}")
        return
    yield f"Images: {found[best]} of the first {len(column.values)} are found in {best}"
    if settings.images or best != path.parent:
        command.append(f"images={best}")


def _folders(path: Path, column: Column) -> Iterator[Path]:
    """The table's folder, those in it, and the one that all absolute paths have in common."""
    yield path.parent
    absolute = [value for value in column.values if os.path.isabs(value)]
    if absolute:
        yield Path(os.path.commonpath([os.path.dirname(value) for value in absolute]))
    with os.scandir(path.parent) as entries:
        names = (entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")
        yield from (path.parent / name for name in sorted(islice(names, _FOLDERS)))


def _found(folder: Path, column: Column) -> int:
    images = ImageFolder(folder)
    found = 0
    for name in column.values:
        try:
            found += images.locate(name)[1].is_file()
        except ImageError:
            continue
    return found
