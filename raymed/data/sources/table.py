"""Source: the user's own table (CSV, TSV, JSON, JSONL or Parquet) and the images it names."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymed.data import cells
from raymed.data.examples import Example, Rejected
from raymed.data.limits import ImageError
from raymed.data.sources.propose import propose
from raymed.data.sources.source import Source
from raymed.data.sources.survey import Column, survey
from raymed.data.sources.table_columns import (
    Columns,
    TableSettings,
    check_fields,
    chosen_columns,
    read_in_full,
)
from raymed.data.sources.table_files import TableRow, TableRows
from raymed.data.sources.table_images import TableImages
from raymed.data.split import split_named, unknown_split
from raymed.data.statistics import TOP_WORDS, by_frequency
from raymed.data.text import sentences
from raymed.data.views import view_in
from raymed.errors import UsageError

_REQUIRED = ("image", "report")
_MOST_LABELS = 0.5
"""A column with a greater share of labels is meant to hold only labels."""


def read(
    path: Path,
    images_folder: Path | None = None,
    columns: Columns | None = None,
    *,
    needed: Collection[str] = (),
    unused: Collection[str] = (),
    tag_separator: str | None = None,
    uncertain: str = "u-zeros",
    print_line: Callable[[str], None] = lambda _: None,
) -> Iterator[Example | Rejected]:
    """Yield the images of a table, in order. Its path becomes an image's id.

    The table is read several times, one row at a time, so it may be larger than memory. How cells
    are read, and when a cell is missing, is documented in `raymed.data.cells`; how a name is
    matched to a file, in `raymed.data.sources.image_folder.ImageFolder.locate`; how images in the
    table are named, in `raymed.data.sources.table_images.TableImages`.

    Args:
        path: The table: ``.csv``, ``.tsv``, ``.jsonl``, ``.json`` (UTF-8 text) or ``.parquet``,
            or a folder of Parquet files, which may hold the images.
        images_folder: Folder that image paths are relative to; by default the table's folder.
        columns: Field -> column, for columns that are not named like their field (in any case).
            The fields are image, report, tags, study, split and view; only the first two are
            required. ``image``, ``report`` and ``tags`` may have several columns, given as a list
            or separated by commas. Each image is an example of the row's study; a cell may hold a
            list of images, and the view column then a list of their views. Reports are joined in
            the order given, and each ends its sentence. If every cell of a tag column is a label
            (1, 0, -1) or missing, the column's name is a tag where the label is 1; any other tag
            column contains the tags themselves. Without tags, the tags of an image are the words
            of its report that are among the 1,000 most frequent of the table, as in the paper for
            PEIR Gross. Without a study, every row is a study, named by its first image. Without a
            view, an image has the view that the name of its column says, if any.
        needed: Further fields that must exist.
        unused: Fields to ignore.
        tag_separator: Separator of the tags in a cell, if it is not ``;`` or ``|``.
        uncertain: How to treat a label of -1: ``u-zeros``: no tag, ``u-ones``: a tag.
        print_line: Called with lines that list the columns used and point out likely mistakes.

    Raises:
        UsageError: The table cannot be read, lacks a column, or has an unknown split name.
    """
    path = Path(path)
    images_folder = path.parent if images_folder is None else Path(images_folder)
    if not images_folder.is_dir():
        raise UsageError(f"{images_folder}: the images folder does not exist")
    rows = TableRows(path)
    columns = columns or {}
    check_fields(columns)
    surveyed = survey(rows, read_in_full(columns))
    if not surveyed:
        raise UsageError(f"{path}: the table has no rows")
    fields = chosen_columns(path, list(surveyed), columns, _REQUIRED)
    if not all(map(view_in, fields["image"])):
        # Only then must the views come from a column of their own.
        fields = chosen_columns(path, list(surveyed), columns, {*_REQUIRED, *needed})
    if rows.parquet:
        rows.parquet.check_images(fields["image"])
    for field in unused:
        fields.pop(field, None)
    _check_split(path, [surveyed[name] for name in fields.get("split", [])])
    labels = _label_columns(path, [surveyed[name] for name in fields.get("tags", [])])
    for line in _notes(surveyed, fields, unused, labels, tag_separator):
        print_line(line)
    if rows.parquet and rows.parquet.splits and "split" in fields:
        print_line("Column split: from the names of the Parquet files")
    return examples(
        rows, images_folder, fields, labels=labels, tag_separator=tag_separator, uncertain=uncertain
    )


def examples(
    rows: Iterable[TableRow],
    images_folder: Path,
    fields: Mapping[str, Sequence[str]],
    *,
    labels: Collection[str] = (),
    tag_separator: str | None = None,
    uncertain: str = "u-zeros",
) -> Iterator[Example | Rejected]:
    """Yield the images of rows as examples, in order.

    Without tags, the tags are the frequent words of the reports.

    Args:
        rows: Dictionaries of column -> cell; iterated twice if there are no tags.
        images_folder: Folder that image paths are relative to.
        fields: Field -> its columns; at least ``image`` and ``report``.
        labels: Tag columns that hold labels.
        tag_separator: As for `read`.
        uncertain: As for `read`.
    """
    reader = _RowReader(fields, labels, tag_separator, (1, -1) if uncertain == "u-ones" else (1,))
    frequent = set() if "tags" in fields else _frequent_words(map(reader.report, rows))
    images = TableImages(images_folder)
    full = rows.with_images(fields["image"]) if isinstance(rows, TableRows) else rows
    for number, row in enumerate(full, start=1):
        cells_of_images = reader.images(row)
        study, report = reader.name(row, "study"), reader.report(row)
        if not cells_of_images:
            yield Rejected("", study, f"row has no image: row {number}")
        fault = ""
        try:
            tags = reader.tags(row) if "tags" in fields else _words_among(frequent, report)
        except ValueError as error:
            fault = f"tags cannot be read: {error}"
        for cell, view in cells_of_images:
            try:
                image_id, image = images.locate(cell, number)
            except ImageError as error:
                name = cells.identifier(cell)
                yield Rejected(name, study or name, str(error))
                continue
            # Without a study, the images of a row are one.
            study = study or image_id
            if fault:
                yield Rejected(image_id, study, fault)
                continue
            yield Example(
                image_id=image_id,
                study=study,
                image=image,
                report=report,
                tags=tuple(tags),
                split=reader.name(row, "split") or None,
                view=view,
            )


@dataclass(frozen=True)
class _RowReader:
    """Reads the fields of a row from its columns."""

    fields: Mapping[str, Sequence[str]]
    labels: Collection[str]
    tag_separator: str | None
    positive: Collection[int]

    def report(self, row: TableRow) -> str:
        return cells.paragraphs([row.get(column) for column in self.fields["report"]])

    def name(self, row: TableRow, field: str) -> str:
        return cells.identifier(row.get(self.fields[field][0])) if field in self.fields else ""

    def tags(self, row: TableRow) -> list[str]:
        """Return the tags; ValueError if a list of them is malformed."""
        tags: list[str] = []
        for column in self.fields["tags"]:
            if column not in self.labels:
                tags += cells.values(row.get(column), self.tag_separator)
            elif cells.label(row.get(column)) in self.positive:
                tags.append(column)
        return tags

    def images(self, row: TableRow) -> list[tuple[Any, str | None]]:
        """Return the cells of the images and their views.

        The views are a list of the same length, one for all, or in the names of the columns.
        """
        images = [
            (each, column)
            for column in self.fields["image"]
            for each in cells.listed(row.get(column))
        ]
        if "view" not in self.fields:
            return [(each, view_in(column)) for each, column in images]
        views = cells.listed(row.get(self.fields["view"][0]))
        if len(views) != len(images):
            views = [self.name(row, "view")] * len(images)
        return [
            (each, cells.identifier(view) or None)
            for (each, _), view in zip(images, views, strict=True)
        ]


def _words_among(words: Collection[str], report: str) -> list[str]:
    """Return the words of a report that are among ``words``, each once."""
    own = " ".join(sentences(report)).split()
    return [word for word in dict.fromkeys(own) if word in words]


def _frequent_words(reports: Iterable[str]) -> set[str]:
    counts = Counter(
        word for report in reports for sentence in sentences(report) for word in sentence.split()
    )
    return set(list(by_frequency(counts))[:TOP_WORDS])


def _check_split(path: Path, columns: Sequence[Column]) -> None:
    """Raise UsageError on an unknown split name, before any image is read."""
    for column in columns:
        for value, number in column.values.items():
            if split_named(value) is None:
                raise unknown_split(value, f"{path}, row {number}, column {column.name!r}")


def _label_columns(path: Path, columns: Sequence[Column]) -> list[str]:
    """Return the names of label columns; UsageError if a column mixes labels with other values."""
    for column in columns:
        if column.first_other and column.labels > _MOST_LABELS * column.filled:
            value, number = column.first_other
            raise UsageError(
                f"{path}, row {number}: column {column.name!r} holds {value!r}, but labels in "
                f"{column.labels:,} of {column.filled:,} cells: a label column may hold only 1, 0, "
                "-1 (uncertain) or nothing. Correct the cell, or drop the column from columns.tags"
            )
    return [column.name for column in columns if column.is_label]


def _notes(
    surveyed: Mapping[str, Column],
    fields: Mapping[str, Sequence[str]],
    unused: Collection[str],
    labels: Collection[str],
    tag_separator: str | None,
) -> Iterator[str]:
    """Describe how the columns are used, and point out likely mistakes."""
    used = [name for names in fields.values() for name in names]
    unused_columns = [name for name in surveyed if name not in used]
    yield "Columns used: " + "; ".join(
        f"{field} from {', '.join(names)}" for field, names in fields.items()
    )
    if unused_columns:
        yield f"Columns not used: {', '.join(unused_columns)}"
    if labels:
        yield f"Label columns, each a tag where it is 1: {', '.join(labels)}"
    elif "tags" not in fields:
        yield "Tags: no column found; using the most frequent words of the reports"
        found = [name for name in unused_columns if surveyed[name].is_label]
        if len(found) > 1:
            yield f"To use these as labels: columns.tags={','.join(found)}"
    kinds = {
        "split": [name for name in unused_columns if surveyed[name].is_split],
        "view": [name for name in unused_columns if surveyed[name].is_view],
    }
    for field, found in kinds.items():
        if found and field not in (*fields, *unused):
            values = ", ".join(surveyed[found[0]].values)
            yield f"Column {found[0]} holds {values}; to use it: columns.{field}={found[0]}"
    for name in fields.get("tags", ()):
        column = surveyed[name]
        if column.labels and not column.is_label:
            yield (
                f"Column {name}: {column.labels:,} of {column.filled:,} cells hold 1, 0 or -1, but "
                "others do not, so these values are read as tag names, not as labels"
            )
        if tag_separator is None and column.seems_undivided:
            yield (
                f"Column {name}: {column.commas:,} of {column.filled:,} cells contain commas, and "
                "none is a list or contains ; or |, so each cell is one tag. If commas separate "
                "the tags, set tag_separator=,"
            )


SOURCE = Source(
    name="table",
    summary="your own CSV, JSON, JSONL or Parquet; without out=, proposes the settings",
    read=lambda path, settings, print_line: read(
        path,
        settings.images_folder,
        settings.columns,
        needed=("view",) if settings.views != "all" else (),
        unused=() if settings.split in ("auto", "given") else ("split",),
        tag_separator=settings.tag_separator,
        uncertain=settings.uncertain,
        print_line=print_line,
    ),
    path="FILE",
    settings=TableSettings,
    accepts=("views", "images", "split_file"),
    propose=propose,
)
