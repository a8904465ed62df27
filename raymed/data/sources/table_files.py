"""Reading table files (CSV, JSONL, JSON and Parquet) as rows of column -> cell."""

import csv
import json
from collections.abc import Collection, Generator, Iterator
from contextlib import closing, contextmanager
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, TextIO

from raymed.data.sources.table_parquet import ParquetTable
from raymed.errors import UsageError

_DELIMITERS = (",", ";", "\t", "|")
_HEADER_LINES = 100
"""Maximum lines of a header; otherwise an unclosed quote would read the whole file."""
_JSON_CHUNK = 2**20
_JSON_RECORD = 64 * 2**20
"""Maximum characters of a record in a JSON list; otherwise a damaged one would read the file."""

TableRow = dict[str, Any]


class TableRows:
    """The rows of a table, read again in each iteration; UsageError if the file is damaged.

    Attributes:
        path: The table.
        parquet: The table if it is Parquet, which may hold images. Rows that are iterated over
            lack their content (see `with_images`).
    """

    def __init__(self, path: Path) -> None:
        readers = {
            ".csv": csv_rows,
            ".tsv": csv_rows,
            ".jsonl": _jsonl_rows,
            ".json": _json_rows,
        }
        self.path = path
        is_parquet = path.is_dir() or path.suffix.lower() == ".parquet"
        self.parquet = ParquetTable(path) if is_parquet else None
        self._reader = readers.get(path.suffix.lower())
        if not is_parquet and self._reader is None:
            raise UsageError(
                f"{path}: the name of a table must end in one of {', '.join(readers)}, .parquet, "
                "or be that of a folder of .parquet files"
            )

    def __iter__(self) -> Iterator[TableRow]:
        return self.with_images(())

    def with_images(self, columns: Collection[str]) -> Iterator[TableRow]:
        """Yield the rows, with the content of the images that are stored in some columns."""
        if self.parquet:
            return self.parquet.rows(columns)
        assert self._reader is not None
        return self._reader(self.path)


def text_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file, without their ends; raises as `read_text` does."""
    # Only this line ending: texts, and JSON strings, may contain the others.
    with _open_text(path, newline="\n") as file:
        for line in file:
            yield line.removesuffix("\n")


def is_json_list(path: Path) -> bool:
    """Whether a JSON file begins as a list does; raises as `read_text` does."""
    with _open_text(path, newline="") as file:
        return _JsonText(file).next_mark() == "["


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
    for number, line in enumerate(text_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UsageError(f"{path}, line {number}: every line must be a JSON object")
        yield row


def _json_rows(path: Path) -> Iterator[TableRow]:
    """Yield the records of a JSON list; only one of them is in memory at a time."""
    with _open_text(path, newline="") as file:
        text = _JsonText(file)
        if text.next_mark() != "[":
            raise UsageError(
                f"{path}: is not a table: a .json file must hold a list of records, [{{...}}, ...]."
                " If it is an R2Gen annotation file, with the lists train, val and test, use: "
                f"raymed prepare r2gen {path} ...; if each line is a row, rename it to .jsonl"
            )
        text.take_mark()
        number = 0
        while (mark := text.next_mark()) != "]":
            if number:
                if mark != ",":
                    raise UsageError(
                        f"{path}: after record {number}, there must be a comma or the end of the "
                        f"list, not {mark or 'the end of the file'}"
                    )
                text.take_mark()
                text.next_mark()
            number += 1
            try:
                row = text.take_value()
            except ValueError as error:
                # Without the position, which is counted from what is in memory.
                reason = getattr(error, "msg", error)
                raise UsageError(f"{path}, record {number}: not JSON: {reason}") from error
            if not isinstance(row, dict):
                raise UsageError(f"{path}, record {number}: every record must be a JSON object")
            yield row
        text.take_mark()
        if mark := text.next_mark():
            raise UsageError(f"{path}: after the list, the file must end, but there is {mark}")


class _JsonText:
    """A JSON file that is parsed value by value."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._position = 0

    def next_mark(self) -> str:
        """Return the next character that is not white space, without taking it; "" at the end."""
        while True:
            while self._position < len(self._text):
                if not self._text[self._position].isspace():
                    return self._text[self._position]
                self._position += 1
            if not self._read_on():
                return ""

    def take_mark(self) -> None:
        """Take the character that `next_mark` returned."""
        self._position += 1

    def take_value(self) -> Any:
        """Take the next value; JSONDecodeError if it is not JSON or too long."""
        while True:
            try:
                value, self._position = self._decoder.raw_decode(self._text, self._position)
                return value
            except json.JSONDecodeError:
                # It may end in what has not been read yet.
                if len(self._text) > _JSON_RECORD or not self._read_on():
                    raise

    def _read_on(self) -> bool:
        left = self._text[self._position :]
        # At least doubled, so that a long value is not parsed again for every chunk.
        read = self._file.read(max(_JSON_CHUNK, len(left)))
        self._text, self._position = left + read, 0
        return bool(read)
