"""Proposing settings for a table, from the names and the contents of its columns."""

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from raymed.data.limits import ImageError
from raymed.data.sources.image_folder import ImageFolder
from raymed.data.sources.survey import SAMPLE, Column, survey
from raymed.data.sources.table_columns import FIELDS, TableSettings, chosen_columns
from raymed.data.sources.table_files import TableRows
from raymed.data.views import view_in
from raymed.errors import UsageError

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
"""Field -> common names of its column, in lower case without punctuation, best first."""
_PARTS = ("findings", "impression", "conclusion")
"""Names of columns that together hold a report, in reading order."""
_REPORT_WORDS = 4
"""Minimum mean words per cell for a column to look like reports."""
_FOLDERS = 200
"""Maximum number of folders beside the table in which images are searched."""


def propose(path: Path, settings: TableSettings) -> list[str]:
    """Return lines that propose a use for each column of a table, and the command to run.

    Args:
        path: The table, of which the first `SAMPLE` rows are inspected.
        settings: What the user has already decided; its columns and images folder are kept.

    Raises:
        UsageError: The table cannot be read, has no rows, or lacks a column that is named.
    """
    rows = TableRows(path)
    columns = survey(islice(rows, SAMPLE), lambda _: False)
    if not columns:
        raise UsageError(f"{path}: the table has no rows")
    given = chosen_columns(path, list(columns), settings.columns, needed=settings.columns)
    fields = _guess(columns, given)
    lines = [f"{path}, judging by the column names and the first rows (up to {SAMPLE:,}):"]
    used = [name for names in fields.values() for name in names]
    for field in FIELDS:
        for name in fields.get(field, []):
            lines.append(f"  {field:7} from {name}: {_describe(columns[name])}")
    for name in columns:
        if name not in used:
            lines.append(f"  not used: {name}: {_describe(columns[name])}")
    command = ["raymed", "prepare", "table", str(path), f"out={settings.out}"]
    for field in ("image", "report"):
        if field not in fields:
            lines.append(f"No column looks like the {field}: give it as columns.{field}=COLUMN.")
            command.append(f"columns.{field}=COLUMN")
    if "tags" not in fields:
        lines.append("No column looks like tags: frequent words of the reports would be used.")
    if "image" in fields and not columns[fields["image"][0]].stored:
        lines += _add_images(path, columns[fields["image"][0]], settings, command)
    command += [
        f"columns.{field}={_as_setting(names)}"
        for field, names in fields.items()
        if names != [field]
    ]
    separator = settings.tag_separator or _separator([columns[n] for n in fields.get("tags", [])])
    command += [f"tag_separator={separator}"] if separator else []
    return [*lines, "To prepare it, run (see raymed prepare --help):", "  " + shlex.join(command)]


def _guess(
    columns: Mapping[str, Column], given: Mapping[str, Sequence[str]]
) -> dict[str, Sequence[str]]:
    """Return field -> likely columns, in the order of `FIELDS`; fields without any are absent."""
    fields = {field: list(names) for field, names in given.items()}
    free = [
        column
        for name, column in columns.items()
        if column.filled and not any(name in names for names in given.values())
    ]
    likely = {
        "image": lambda: (
            _images([c for c in free if 2 * (c.files + c.stored) > c.filled])
            or _best_named(free, "image", named=True)
        ),
        "split": lambda: _best_named([c for c in free if c.is_split], "split"),
        "view": lambda: _best_named([c for c in free if c.is_view], "view"),
        "study": lambda: _best_named(free, "study", named=True),
        "tags": lambda: (
            _best_named([c for c in free if not c.is_label], "tags", named=True)
            or [c for c in free if c.is_label]
        ),
        "report": lambda: _reports([c for c in free if not c.is_label]),
    }
    for field, find in likely.items():
        if field not in fields and (found := find()):
            fields[field] = [column.name for column in found]
            free = [column for column in free if column not in found]
    return {field: fields[field] for field in FIELDS if field in fields}


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _best_named(columns: Sequence[Column], field: str, named: bool = False) -> list[Column]:
    """Return the column with the best name for a field, in a list that may be empty.

    With ``named``, only a column with one of the common names qualifies.
    """
    names = _NAMES[field].split()
    ranked = sorted(columns, key=lambda c: (*names, _letters(c.name)).index(_letters(c.name)))
    return [c for c in ranked if not named or _letters(c.name) in names][:1]


def _images(columns: Sequence[Column]) -> list[Column]:
    """Return the columns of images: those that are named by a view, or else the best named one."""
    views = [column for column in columns if view_in(column.name)]
    return views if len(views) > 1 else _best_named(columns, "image")


def _reports(columns: Sequence[Column]) -> list[Column]:
    """Return the columns most likely to hold the report: by name, by parts, or by length."""
    whole = _best_named(columns, "report", named=True)
    parts = [c for part in _PARTS for c in columns if _letters(c.name) == part]
    long = [c for c in columns if c.words >= _REPORT_WORDS * c.filled]
    return whole or parts or sorted(long, key=lambda c: -c.words / c.filled)[:1]


def _describe(column: Column) -> str:
    if not column.filled:
        return "empty"
    if column.stored:
        return "images stored in the table"
    if column.is_label:
        return "labels, " + ", ".join(column.values)
    if column.words >= _REPORT_WORDS * column.filled:
        return f"text, {column.words / column.filled:.0f} words per cell on average"
    shown = [value[:60] for value in column.values]
    return ", ".join(shown[:3]) + (", ..." if len(shown) > 3 else "")


def _separator(tags: Sequence[Column]) -> str | None:
    return "," if any(column.seems_undivided for column in tags) else None


def _as_setting(names: Sequence[str]) -> str:
    """Format column names for `raymed prepare`: as a list if a name contains a comma."""
    return (
        json.dumps(names, ensure_ascii=False) if any("," in n for n in names) else ",".join(names)
    )


def _add_images(
    path: Path, column: Column, settings: TableSettings, command: list[str]
) -> Iterator[str]:
    """Add the images folder to the command, and report how many of the first images exist."""
    folders = [Path(settings.images)] if settings.images else list(_folders(path, column))
    found = {folder: _count_found(folder, column) for folder in folders}
    best = max(found, key=lambda folder: found[folder])
    if not found[best]:
        tried = ", ".join(str(folder) for folder in folders[:3])
        yield f"{next(iter(column.values))!r} was not found below {tried}: give images=FOLDER."
        command.append(f"images={settings.images or 'FOLDER'}")
        return
    yield f"Images: {found[best]} of the first {len(column.values)} were found in {best}"
    if settings.images or best != path.parent:
        command.append(f"images={best}")


def _folders(path: Path, column: Column) -> Iterator[Path]:
    """Yield the table's folder, the common parent of absolute paths, and the table's siblings."""
    yield path.parent
    absolute = [value for value in column.values if os.path.isabs(value)]
    if absolute:
        yield Path(os.path.commonpath([os.path.dirname(value) for value in absolute]))
    with os.scandir(path.parent) as entries:
        names = (entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")
        yield from (path.parent / name for name in sorted(islice(names, _FOLDERS)))


def _count_found(folder: Path, column: Column) -> int:
    image_folder = ImageFolder(folder)
    found = 0
    for name in column.values:
        try:
            found += image_folder.locate(name)[1].is_file()
        except ImageError:
            continue
    return found
