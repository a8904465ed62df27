"""Reading table files (CSV, JSONL and Parquet) as rows of column -> cell."""

import csv
import json
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa

from raymed.errors import UsageError

_PARQUET_ROWS = 1000
_DELIMITERS = (",", ";", "\t", "|")
_HEADER_LINES = 100
"""Maximum lines of a header; otherwise an unclosed quote would read the whole file."""

TableRow = dict[str, Any]


class TableRows:
    """The rows of a table, read again in each iteration; UsageError if the file is damaged."""

    def __init__(self, path: Path) -> None:
        readers = {
            ".csv": csv_rows,
            ".tsv": csv_rows,
            ".jsonl": _jsonl_rows,
            ".parquet": _parquet_rows,
        }
        self.path = path
        self._reader = readers.get(path.suffix.lower())
        if path.suffix.lower() == ".json":
            raise UsageError(
                f"{path}: a .json file is not a table. If it is an R2Gen annotation file, with the "
                f"lists train, val and test, use: raymed prepare r2gen {path} ...; if each line is "
                "a row, rename it to .jsonl"
            )
        if self._reader is None:
            raise UsageError(f"{path}: the name of a table must end in one of {', '.join(readers)}")

    def __iter__(self) -> Iterator[TableRow]:
        assert self._reader is not None
        return self._reader(self.path)


def read_text(path: Path) -> str:
    """Return the text of a file; UsageError if it cannot be read or is not UTF-8."""
    with _open_text(path, newline="") as file:
        return file.read()


@contextmanager
def _open_text(path: Path, newline: str) -> Iterator[TextIO]:
    """Open a UTF-8 file, with or without a byte order mark; raises as `read_text` does."""
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
    return UsageError(f"{path}: changed while it was read; try again")


def csv_columns(path: Path) -> list[str]:
    """Return the names of a CSV file's columns, in order; UsageError if it is damaged."""
    return [name for name in _csv_header(path) if name]


def csv_rows(path: Path) -> Iterator[TableRow]:
    """Yield the rows of a CSV file, with None for missing cells; UsageError if it is damaged.

    The delimiter is a comma, a semicolon, a tab or ``|``, whichever splits the header into most
    columns, unless a first line such as ``sep=;`` declares it. Columns without a name and empty
    rows are skipped.
    """
    header = _csv_header(path)
    for number, cells in islice(_csv_lines(path), 1, None):
        if any(cell.strip() for cell in cells[len(header) :]):
            raise UsageError(
                f"{path}, line {number}: {len(cells)} cells, but the header has {len(header)}; "
                "a cell that contains the delimiter must be quoted"
            )
        yield {name: cell for name, cell in zip_longest(header, cells[: len(header)]) if name}


def _csv_header(path: Path) -> list[str]:
    """Return the name of every column, "" if it has none."""
    with closing(_csv_lines(path)) as lines:
        header = [name.strip() for name in next(lines, (0, []))[1]]
    duplicates = sorted({name for name in header if name and header.count(name) > 1})
    if duplicates:
        raise UsageError(
            f"{path}: two columns have the same name, {duplicates[0]!r}; the columns are "
            f"{', '.join(map(repr, header))}"
        )
    if len(header) == 1:
        raise UsageError(
            f"{path}: the header has only one column, {header[0][:100]!r}; columns must be "
            "separated by a comma, a semicolon, a tab or |"
        )
    return header


def _csv_lines(path: Path) -> Generator[tuple[int, list[str]]]:
    """Yield line numbers and cells, including the header; empty lines are skipped."""
    delimiter, skipped = _csv_delimiter(path)
    with _open_text(path, newline="") as file:
        for _ in range(skipped):
            file.readline()
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            for cells in reader:
                if any(map(str.strip, cells)):
                    yield skipped + reader.line_num, cells
        except csv.Error as error:
            line = skipped + reader.line_num
            raise UsageError(f"{path}, line {line}: not CSV: {error}") from error


def _csv_delimiter(path: Path) -> tuple[str, int]:
    """Return the delimiter, and how many lines before the header declare it."""
    header = ""
    with _open_text(path, newline="") as file:
        for line in islice(file, _HEADER_LINES):
            mark = line.strip("\r\n")
            if not header and mark.lower().startswith("sep=") and len(mark) == len("sep=") + 1:
                return mark[-1], 1
            header += line
            # A quoted name may contain a line break.
            if line.strip() and header.count('"') % 2 == 0:
                break
    outside_quotes = "".join(header.split('"')[::2])
    return max(_DELIMITERS, key=outside_quotes.count), 0


def _jsonl_rows(path: Path) -> Iterator[TableRow]:
    # Only this line ending: JSON strings may contain the others.
    with _open_text(path, newline="\n") as file:
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


def _parquet_rows(path: Path) -> Iterator[TableRow]:
    # Imported here because it imports pandas, which takes a second.
    import pyarrow.dataset as pads

    try:
        parts = pads.dataset(path, format="parquet")
        for batch in parts.to_batches(
            batch_size=_PARQUET_ROWS, batch_readahead=1, fragment_readahead=1
        ):
            yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{path}: cannot be read as Parquet: {error}") from error
