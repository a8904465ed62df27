"""Source: a table of one's own (CSV, JSONL or Parquet) and a folder of images."""

import csv
import difflib
import io
import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raymed.data.examples import Example, Rejected
from raymed.data.statistics import TOP_WORDS, by_frequency
from raymed.data.text import sentences
from raymed.errors import UsageError

FIELDS = ("image", "report", "tags", "study", "split", "view")
_REQUIRED = ("image", "report")
_TAG_SEPARATOR = re.compile(r"[;|]")

Row = dict[str, Any]


def read(
    path: Path,
    images: Path | None = None,
    columns: Mapping[str, str | Sequence[str]] | None = None,
) -> Iterator[Example | Rejected]:
    """Yield the rows of a table, in order; the image's path in it becomes the image id.

    Args:
        path: the table: ``.csv``, ``.jsonl`` or ``.parquet``, text in UTF-8.
        images: folder that image paths are relative to; by default the table's.
        columns: field -> column, for columns that do not bear the field's name. The fields are
            image, report, tags, study, split and view; all but the first two may be absent.
            ``tags`` is one column that holds a list, or a string separated by ``;`` or ``|``;
            or a list of columns whose values are the tags. Without tags, an image's tags are
            the words of its report that are among the table's 1,000 most frequent, as the paper
            does for PEIR Gross. Without a study, every image is a study of its own.

    Raises:
        UsageError: the table cannot be read or lacks a column.
    """
    path = Path(path)
    images = path.parent if images is None else Path(images)
    if not images.is_dir():
        raise UsageError(f"{images}: the images folder does not exist")
    rows, there = _read_rows(path)
    fields = _fields(path, there, columns or {})
    return examples(rows, images, fields)


def examples(
    rows: list[Row], images: Path, fields: Mapping[str, list[str]]
) -> Iterator[Example | Rejected]:
    """Yield rows as examples, in order; without tags, these are the reports' frequent words.

    Args:
        rows: column -> cell, each.
        images: folder that image paths are relative to.
        fields: field -> its columns; ``image`` and ``report`` at least.
    """

    def cell(row: Row, field: str) -> str:
        return _text(row.get(fields[field][0])) if field in fields else ""

    frequent = set() if "tags" in fields else _frequent_words(rows, fields["report"][0])
    for number, row in enumerate(rows, start=1):
        name = cell(row, "image")
        study = cell(row, "study")
        if not name:
            yield Rejected("", study, f"row names no image: row {number}")
            continue
        image_id = posixpath.normpath(name.replace("\\", "/"))
        study = study or image_id
        if image_id.startswith(("/", "../")) or image_id in (".", "..") or Path(name).drive:
            yield Rejected(image_id, study, "image path leaves the images folder")
            continue
        report = cell(row, "report")
        if "tags" in fields:
            tags = _tags(row, fields["tags"])
        else:
            words = " ".join(sentences(report)).split()
            tags = [word for word in dict.fromkeys(words) if word in frequent]
        yield Example(
            image_id=image_id,
            study=study,
            image=images / image_id,
            report=report,
            tags=tuple(tags),
            split=cell(row, "split") or None,
            view=cell(row, "view") or None,
        )


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _tags(row: Row, columns: list[str]) -> list[str]:
    if len(columns) > 1:
        values: Sequence[Any] = [row.get(column) for column in columns]
    else:
        value = row.get(columns[0])
        values = value if isinstance(value, list) else _TAG_SEPARATOR.split(_text(value))
    return [text for text in map(_text, values) if text]


def _frequent_words(rows: list[Row], column: str) -> set[str]:
    counts = Counter(
        word
        for row in rows
        for sentence in sentences(_text(row.get(column)))
        for word in sentence.split()
    )
    return set(list(by_frequency(counts))[:TOP_WORDS])


def _fields(
    path: Path, there: Sequence[str], columns: Mapping[str, str | Sequence[str]]
) -> dict[str, list[str]]:
    """Return field -> its columns, all of which are in the table; UsageError otherwise."""
    for field in columns:
        if field not in FIELDS:
            raise UsageError(
                f"columns: no field {field!r}{_nearest(field, FIELDS)}; the fields are "
                f"{', '.join(FIELDS)}"
            )
    fields: dict[str, list[str]] = {}
    for field in FIELDS:
        named = columns.get(field)
        if named is None and field not in there and field not in _REQUIRED:
            continue
        names = [named or field] if named is None or isinstance(named, str) else list(named)
        if not names or (len(names) > 1 and field != "tags"):
            raise UsageError(f"columns: field {field} takes one column, and was given {names}")
        for name in names:
            if name not in there:
                raise UsageError(
                    f"{path}: no column {name!r} for field {field}{_nearest(name, there)}; the "
                    f"columns are {', '.join(there)}"
                )
        fields[field] = names
    return fields


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _read_rows(path: Path) -> tuple[list[Row], list[str]]:
    """Return the rows of a table and the names of its columns."""
    readers = {".csv": read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"{path}: a table must end in {', '.join(readers)}")
    rows, there = reader(path)
    if not rows:
        raise UsageError(f"{path}: the table has no rows")
    return rows, there


def read_text(path: Path) -> str:
    """Return the text of a file; UsageError if it cannot be read or is not UTF-8."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{path}: not UTF-8 text: byte 0x{content[error.start]:02x} at offset {error.start} "
            f"(line {line}). Save it as UTF-8"
        ) from error


def read_csv(path: Path) -> tuple[list[Row], list[str]]:
    """Return the rows and column names of a CSV file; UsageError if it is damaged."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    rows: list[Row] = []
    try:
        there = list(reader.fieldnames or [])
        for row in reader:
            if None in row:
                raise UsageError(
                    f"{path}, line {reader.line_num}: {len(there) + len(row[None])} cells, and "
                    f"the header has {len(there)}; a cell with a comma must stand in quotes"
                )
            rows.append(row)
    except csv.Error as error:
        raise UsageError(f"{path}, line {reader.line_num}: not CSV: {error}") from error
    if len(set(there)) < len(there):
        raise UsageError(f"{path}: two columns have the same name; the columns are {there}")
    return rows, there


def _read_jsonl(path: Path) -> tuple[list[Row], list[str]]:
    rows = []
    # Not splitlines(), which also breaks at characters that JSON strings may hold.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UsageError(f"{path}, line {number}: every line must be a JSON object")
        rows.append(row)
    return rows, list(dict.fromkeys(column for row in rows for column in row))


def _read_parquet(path: Path) -> tuple[list[Row], list[str]]:
    try:
        table = pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{path}: cannot be read as Parquet: {error}") from error
    return table.to_pylist(), table.column_names
