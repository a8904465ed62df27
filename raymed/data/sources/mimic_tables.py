"""The tables of MIMIC-CXR-JPG, held in columns of numbers and ids."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from raymed.data import cells
from raymed.data.split import split_named, unknown_split
from raymed.errors import UsageError

_IDS = ("subject_id", "study_id")
_CHUNK_ROWS = 1000
_MISSING = -2


class ImageRow(NamedTuple):
    """An image of the archive."""

    image_id: str
    """Its ``dicom_id``."""
    subject: int
    study: int
    view: str | None
    """Its ``ViewPosition``."""
    split: str | None
    labels: int | None
    """The row of its study in `Labels.values`; None if it is not in the table."""


class Labels(NamedTuple):
    """The label table."""

    names: Sequence[str]
    values: np.ndarray
    """1, 0, -1 (uncertain) or -2 (missing), int8 [studies, names]."""

    def tags(self, row: int, positive: Collection[int]) -> tuple[str, ...]:
        """Return the names of the labels in a row that have one of the values ``positive``."""
        pairs = zip(self.names, self.values[row].tolist(), strict=True)
        return tuple(name for name, value in pairs if value in positive)


class Tables(NamedTuple):
    """What the tables say of the archive."""

    images: pa.Table
    """A row for each image, in the fields of `ImageRow`; those of a study follow each other."""
    labels: Labels
    has_split: bool

    def rows(self) -> Iterator[ImageRow]:
        """Yield the images."""
        for batch in self.images.to_batches(_CHUNK_ROWS):
            columns = [column.to_pylist() for column in batch.columns]
            yield from map(ImageRow._make, zip(*columns, strict=True))


def read_tables(folder: Path) -> Tables:
    """Read ``mimic-cxr-2.0.0-metadata.csv.gz``, ``-chexpert.csv.gz`` and, if it exists, ``-split``.

    The files may be unpacked (``.csv``).

    Args:
        folder: The folder of the tables.

    Raises:
        UsageError: A table is missing or damaged, lacks a column, or has an unknown value.
    """
    path = _existing(folder, "metadata")
    images = _read(path, ["dicom_id", *_IDS, "ViewPosition"])
    if not len(images):
        raise UsageError(f"{path}: the table has no rows")
    for name in ("dicom_id", *_IDS):
        if images[name].null_count:
            raise UsageError(f"{path}: column {name} has empty cells; download the table again")
    split_file = _file(folder, "split")
    splits = pa.nulls(len(images), pa.string())
    if split_file:
        splits = _splits(split_file, images["dicom_id"])
    labels, studies = _labels(_existing(folder, "chexpert"))
    label_rows = pc.index_in(images["study_id"], value_set=studies)
    images = images.append_column("split", splits).append_column("labels", label_rows)
    # Stable, so the images of a study keep the order of the table.
    images = images.sort_by([(name, "ascending") for name in _IDS])
    return Tables(images, labels, split_file is not None)


def _file(folder: Path, name: str) -> Path | None:
    for ending in ("csv.gz", "csv"):
        if found := sorted(folder.glob(f"mimic-cxr-*-{name}.{ending}")):
            return found[-1]
    return None


def _existing(folder: Path, name: str) -> Path:
    path = _file(folder, name)
    if path is None:
        raise UsageError(
            f"{folder}: no mimic-cxr-2.0.0-{name}.csv.gz: put the tables of MIMIC-CXR-JPG there "
            "(metadata, chexpert and split), also to read the DICOM files of MIMIC-CXR"
        )
    return path


def _read(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read some or all columns of a table, ids as numbers and names as text."""
    kinds = dict.fromkeys(("dicom_id", "ViewPosition", "split"), pa.string())
    options = csv.ConvertOptions(
        include_columns=columns,
        column_types={**kinds, **dict.fromkeys(_IDS, pa.int64())},
        strings_can_be_null=True,
    )
    try:
        return csv.read_csv(path, convert_options=options)
    except KeyError as error:
        raise UsageError(
            f"{path}: {error.args[0]}; it must have {', '.join(columns or ())}"
        ) from error
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{path}: cannot be read ({error}); download it again") from error


def _splits(path: Path, image_ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the split of each image, null if the table does not have it."""
    table = _read(path, ["dicom_id", "split"])
    for name in table["split"].unique().drop_null().to_pylist():
        if split_named(name) is None:
            raise unknown_split(name, str(path))
    rows = pc.index_in(image_ids, value_set=table["dicom_id"].combine_chunks())
    return table["split"].take(rows)


def _labels(path: Path) -> tuple[Labels, pa.Array]:
    """Read the labels, and the study of each row."""
    table = _read(path)
    names = [name for name in table.column_names if name not in _IDS]
    if not names or "study_id" not in table.column_names:
        raise UsageError(
            f"{path}: it must have study_id and label columns, but has "
            f"{', '.join(table.column_names)}"
        )
    values = np.empty((len(table), len(names)), np.int8)
    for column, name in enumerate(names):
        values[:, column] = _label_values(table[name], f"{path}: column {name!r}")
    return Labels(names, values), table["study_id"].combine_chunks()


def _label_values(column: pa.ChunkedArray, where: str) -> np.ndarray:
    """Return the values of a label, int8, as in `Labels`; UsageError if one is no label."""
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    distinct = encoded.dictionary.to_pylist()
    values = [_MISSING if value is None else cells.label(value) for value in distinct]
    if None in values:
        wrong = values.index(None)
        row = pc.index(encoded.indices, wrong).as_py() + 1
        raise UsageError(
            f"{where} holds {distinct[wrong]!r} in row {row:,}: a label is 1, 0, -1 (uncertain) or "
            "empty"
        )
    return np.array(values, np.int8)[encoded.indices.to_numpy(zero_copy_only=False)]
