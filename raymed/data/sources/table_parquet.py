"""Reading Parquet tables, in which images may be stored as the bytes of their files."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raymed.data.split import split_named
from raymed.errors import UsageError
from raymed.image_files import DICOM_MARK, is_image_start

_ROWS = 1000
_IMAGE_ROWS = 16
"""Rows that are read at a time, without and with the images stored in them."""
_INSPECTED = 16
"""How many cells of a column of bytes are inspected for an image."""
_BUFFER_BYTES = 2**20


@dataclass(frozen=True)
class StoredImage:
    """An image whose file is stored in a table."""

    path: str
    """The name that is stored with it, or ""."""
    content: bytes | None = field(default=None, repr=False)
    """The file; None if the table was read without images."""


class ParquetTable:
    """A Parquet file, or a folder of them in the order of their names.

    Images are stored in a column of bytes, as structs with a field ``bytes`` and perhaps a field
    ``path`` (the form of Hugging Face datasets), or as lists of either.

    Args:
        path: The file or folder.

    Attributes:
        stored: The columns with stored images.
        splits: File -> split, if the name of each file or its folder tells (``train-00000.parquet``
            or ``train/0.parquet``) and there is no column ``split``; else empty.

    Raises:
        UsageError: It cannot be read as Parquet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = _files(path)
        with _open(self._files[0]) as first:
            schema = first.schema_arrow
        self._structs = {field.name for field in schema if _is_struct(field.type)}
        self._starts = {
            field.name: self._first_starts(field.name)
            for field in schema
            if field.name in self._structs or _is_binary(_item_type(field.type))
        }
        self._only_paths = {name for name in self._structs if not self._starts[name]}
        self.stored = (self._structs - self._only_paths) | {
            name for name, starts in self._starts.items() if any(map(is_image_start, starts))
        }
        named = any(name.strip().lower() == "split" for name in schema.names)
        self.splits = {} if named else _splits_of(path, self._files)

    def _first_starts(self, name: str) -> list[bytes]:
        """Return how the first files in a column of bytes begin."""
        starts: list[bytes] = []
        for path in self._files:
            with _open(path) as file:
                columns = _leaves(file, name)
                for batch in file.iter_batches(_IMAGE_ROWS, columns=columns) if columns else ():
                    for row in batch.to_pylist():
                        starts += _starts(row[name])
                    if len(starts) >= _INSPECTED:
                        return starts
        return starts

    def check_images(self, columns: Collection[str]) -> None:
        """Raise UsageError if a column holds bytes, and the first are neither images nor paths."""
        for name in columns:
            starts = self._starts.get(name)
            are_paths = name not in self._structs and all(map(_is_text, starts or ()))
            if starts and not are_paths and not any(map(is_image_start, starts)):
                raise UsageError(
                    f"{self.path}: column {name!r} holds bytes that are not a PNG, JPEG, TIFF or "
                    f"DICOM file (the first ones are {starts[0][:8].hex(' ') or 'empty'}): choose "
                    "the column of the images with columns.image=NAME"
                )

    def rows(self, images: Collection[str] = ()) -> Iterator[dict[str, Any]]:
        """Yield the rows, with the content of stored images only for the columns ``images``."""
        wanted = self.stored & set(images)
        for file in self._files:
            split = {"split": self.splits[file]} if file in self.splits else {}
            for row in self._rows_of(file, wanted):
                yield row | split

    def _rows_of(self, path: Path, images: Collection[str]) -> Iterator[dict[str, Any]]:
        with _open(path) as file:
            names = file.schema_arrow.names
            columns = [leaf for leaf in _leaves(file) if self._is_read(leaf, names, images)]
            for batch in file.iter_batches(_IMAGE_ROWS if images else _ROWS, columns=columns):
                for row in batch.to_pylist():
                    yield {
                        name: self._cell(row, name, name in images)
                        for name in names
                        if name in self.stored or name in row
                    }

    def _is_read(self, leaf: str, names: Sequence[str], images: Collection[str]) -> bool:
        """Whether to read a leaf column: all but the content of images that are not wanted."""
        name = _column_of(leaf, names)
        content = name not in self._structs or leaf.endswith(".bytes")
        return name not in self.stored or name in images or not content

    def _cell(self, row: Mapping[str, Any], name: str, with_content: bool) -> Any:
        if name in self._only_paths:
            return _stored(row[name], with_content=True)
        if name not in self.stored:
            return row[name]
        if name not in row:
            # Whether there is an image in this row is not known without reading it.
            return StoredImage("")
        return _stored(row[name], with_content)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = [file.relative_to(path) for file in path.rglob("*.parquet") if file.is_file()]
    shown = sorted(file for file in files if not any(part[0] in "._" for part in file.parts))
    if not shown:
        raise UsageError(f"{path}: there is no .parquet file in the folder")
    return [path / file for file in shown]


@contextmanager
def _open(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a file to be read page by page; UsageError if it, or what is read of it, is damaged."""
    try:
        # A group of rows with images may be larger than memory; by default, it is read at once.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{path}: cannot be read as Parquet: {error}") from error


def _starts(cell: Any) -> list[bytes]:
    """Return how the files that a cell holds begin."""
    items = cell if isinstance(cell, list) else [cell]
    contents = (item.get("bytes") if isinstance(item, dict) else item for item in items)
    return [content[: DICOM_MARK.stop] for content in contents if content is not None]


def _leaves(file: pq.ParquetFile, name: str | None = None) -> list[str]:
    """Return the paths of all leaf columns, or of those of one column."""
    leaves = [file.schema.column(number).path for number in range(len(file.schema))]
    names = file.schema_arrow.names
    return [leaf for leaf in leaves if name is None or _column_of(leaf, names) == name]


def _column_of(leaf: str, names: Sequence[str]) -> str:
    """Return the column of a leaf; the names of columns may contain dots."""
    return max((n for n in names if leaf == n or leaf.startswith(f"{n}.")), key=len)


def _item_type(kind: pa.DataType) -> pa.DataType:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return kind.value_type if any(is_kind(kind) for is_kind in lists) else kind


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_struct(kind: pa.DataType) -> bool:
    """Whether a column holds structs with a field ``bytes``, or lists of them."""
    item = _item_type(kind)
    number = item.get_field_index("bytes") if pa.types.is_struct(item) else -1
    return number >= 0 and _is_binary(item.field(number).type)


def _stored(cell: Any, with_content: bool) -> Any:
    """Return a cell with stored images; one that has only a path is the path."""
    if isinstance(cell, list):
        return [_stored(each, with_content) for each in cell]
    if not isinstance(cell, dict):
        return None if cell is None else StoredImage("", cell)
    path, content = cell.get("path") or "", cell.get("bytes")
    if with_content and content is None:
        return path or None
    return StoredImage(path, content)


def _is_text(content: bytes) -> bool:
    try:
        return "\0" not in content.decode()
    except UnicodeDecodeError:
        return False


def _splits_of(path: Path, files: Sequence[Path]) -> dict[Path, str]:
    """Return the split that each file's name or folder tells; empty if one tells none."""
    splits = {}
    for file in files:
        parts = file.relative_to(path).parts if file != path else ()
        names = (split_named(Path(part).stem.partition("-")[0]) for part in reversed(parts))
        splits[file] = next(filter(None, names), None)
    return {file: split for file, split in splits.items() if split and None not in splits.values()}
