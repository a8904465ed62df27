"""Source: a table of one's own (CSV, JSONL or Parquet) and a folder of images."""

import csv
import difflib
import json
import posixpath
import re
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.dataset as pads

from raymed.data.examples import Example, Rejected
from raymed.data.statistics import TOP_WORDS, by_frequency
from raymed.data.text import sentences
from raymed.errors import UsageError

FIELDS = ("image", "report", "tags", "study", "split", "view")
_REQUIRED = ("image", "report")
_PARQUET_ROWS = 1000
_TAG_SEPARATOR = re.compile(r"[;|]")

Row = dict[str, Any]


def read(
    path: Path,
    images: Path | None = None,
    columns: Mapping[str, str | Sequence[str]] | None = None,
) -> Iterator[Example | Rejected]:
    """Yield the rows of a table, in order; the image's path in it becomes the image id.

    The table is read several times over, a row at a time: it may be larger than memory.

    Args:
        path: the table: ``.csv``, ``.jsonl`` (text in UTF-8) or ``.parquet``, a file or a folder.
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
    rows = _Rows(path)
    there = _columns(rows)
    fields = _fields(path, there, columns or {})
    return examples(rows, images, fields)


def examples(
    rows: Iterable[Row], images: Path, fields: Mapping[str, list[str]]
) -> Iterator[Example | Rejected]:
    """Yield rows as examples, in order; without tags, these are the reports' frequent words.

    Args:
        rows: column -> cell, each; iterated twice if there are no tags.
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


def _frequent_words(rows: Iterable[Row], column: str) -> set[str]:
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


class _Rows:
    """The rows of a table, read anew each time they are iterated; UsageError if it is damaged."""

    def __init__(self, path: Path) -> None:
        readers = {".csv": csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
        self.path = path
        self._reader = readers.get(path.suffix.lower())
        if self._reader is None:
            raise UsageError(f"{path}: a table must end in {', '.join(readers)}")

    def __iter__(self) -> Iterator[Row]:
        assert self._reader is not None
        return self._reader(self.path)


def _columns(rows: _Rows) -> list[str]:
    """The columns of a table, all rows of which are read; UsageError if it has no row."""
    there: dict[str, None] = {}
    for row in rows:
        there |= dict.fromkeys(row)
    if not there:
        raise UsageError(f"{rows.path}: the table has no rows")
    return list(there)


def read_text(path: Path) -> str:
    """Return the text of a file; UsageError if it cannot be read or is not UTF-8."""
    with _opened(path, newline="") as file:
        return file.read()


@contextmanager
def _opened(path: Path, newline: str) -> Iterator[TextIO]:
    """Open a UTF-8 file, with or without a byte order mark; UsageError as `read_text`."""
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as file:
            yield file
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error


def _not_utf8(path: Path) -> UsageError:
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return UsageError(
                    f"{path}: not UTF-8 text: byte 0x{line[error.start]:02x} at offset "
                    f"{offset + error.start} (line {number}). Save it as UTF-8"
                )
            offset += len(line)
    return UsageError(f"{path}: is being changed while it is read; read it again")


def csv_columns(path: Path) -> list[str]:
    """Return the column names of a CSV file; UsageError if it is damaged."""
    with closing(_csv_lines(path)) as lines:
        there = next(lines, (0, []))[1]
    if len(set(there)) < len(there):
        raise UsageError(f"{path}: two columns have the same name; the columns are {there}")
    return there


def csv_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a CSV file, None in place of missing cells; UsageError if it is damaged."""
    there = csv_columns(path)
    for number, cells in islice(_csv_lines(path), 1, None):
        if len(cells) > len(there):
            raise UsageError(
                f"{path}, line {number}: {len(cells)} cells, and the header has {len(there)}; a "
                "cell with a comma must stand in quotes"
            )
        yield dict(zip_longest(there, cells))


def _csv_lines(path: Path) -> Generator[tuple[int, list[str]]]:
    """Line number and cells, the header's too; empty lines are left out."""
    with _opened(path, newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except csv.Error as error:
            raise UsageError(f"{path}, line {reader.line_num}: not CSV: {error}") from error


def _jsonl_rows(path: Path) -> Iterator[Row]:
    # No other line end than this one: JSON strings may hold them.
    with _opened(path, newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UsageError(f"{path}, line {number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise UsageError(f"{path}, line {number}: every line must be a JSON object")
            yield row


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        parts = pads.dataset(path, format="parquet")
        for batch in parts.to_batches(
            batch_size=_PARQUET_ROWS, batch_readahead=1, fragment_readahead=1
        ):
            yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{path}: cannot be read as Parquet: {error}") from error
