"""Source: a table of one's own (CSV, JSONL or Parquet) and a folder of images."""

import difflib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from raymed.data import cells
from raymed.data.examples import Example, Rejected
from raymed.data.limits import ImageError
from raymed.data.sources.image_folder import ImageFolder
from raymed.data.sources.survey import Column, survey
from raymed.data.sources.table_files import Row, TableRows
from raymed.data.split import side_of, unknown_split
from raymed.data.statistics import TOP_WORDS, by_frequency
from raymed.data.text import sentences
from raymed.errors import UsageError

FIELDS = ("image", "report", "tags", "study", "split", "view")
Columns = Mapping[Any, str | Sequence[str]]
"""Field -> its column, or its columns."""

_REQUIRED = ("image", "report")
_SEVERAL = ("report", "tags")
"""Fields that may take several columns."""
_MOST_LABELS = 0.5
"""A column with a greater share of labels is meant to hold nothing else."""


def read(
    path: Path,
    images: Path | None = None,
    columns: Columns | None = None,
    *,
    needed: Collection[str] = (),
    unused: Collection[str] = (),
    tag_separator: str | None = None,
    uncertain: str = "u-zeros",
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Example | Rejected]:
    """Yield the rows of a table, in order; the image's path in it becomes the image id.

    The table is read several times over, a row at a time: it may be larger than memory. What a
    cell holds, and when it is missing, is said in `raymed.data.cells`; how a name means a file,
    in `raymed.data.sources.image_folder.ImageFolder.locate`.

    Args:
        path: the table: ``.csv``, ``.tsv``, ``.jsonl`` (text in UTF-8) or ``.parquet``, a file or
            a folder.
        images: folder that image paths are relative to; by default the table's.
        columns: field -> column, for columns that do not bear the field's name (in any case). The
            fields are image, report, tags, study, split and view; all but the first two may be
            absent. ``report`` and ``tags`` may be several columns, as a list or with commas
            between. The reports are joined in the order given, and each ends its sentence. A tag
            column of which every cell is a label (1, 0, -1) or missing gives its name as a tag
            where the label is 1; any other gives its values. Without tags, an image's tags are
            the words of its report that are among the table's 1,000 most frequent, as the paper
            does for PEIR Gross. Without a study, every image is a study of its own.
        needed: further fields that must be there.
        unused: fields that are not to be looked at.
        tag_separator: what separates the tags of a cell, where it is not ``;`` or ``|``.
        uncertain: what a label of -1 is: ``u-zeros`` no tag, ``u-ones`` a tag.
        say: told in lines of text which columns are used, and what looks like a mistake.

    Raises:
        UsageError: the table cannot be read, lacks a column, or names a split that is none.
    """
    path = Path(path)
    images = path.parent if images is None else Path(images)
    if not images.is_dir():
        raise UsageError(f"{images}: the images folder does not exist")
    rows = TableRows(path)
    columns = columns or {}
    _check_fields(columns)
    there = survey(rows, _candidates(columns))
    if not there:
        raise UsageError(f"{path}: the table has no rows")
    fields = chosen_columns(path, list(there), columns, {*_REQUIRED, *needed})
    for field in unused:
        fields.pop(field, None)
    _check_split(path, [there[name] for name in fields.get("split", [])])
    labels = _labels(path, [there[name] for name in fields.get("tags", [])])
    for line in _notes(there, fields, unused, labels, tag_separator):
        say(line)
    return examples(
        rows, images, fields, labels=labels, tag_separator=tag_separator, uncertain=uncertain
    )


def examples(
    rows: Iterable[Row],
    images: Path,
    fields: Mapping[str, Sequence[str]],
    *,
    labels: Collection[str] = (),
    tag_separator: str | None = None,
    uncertain: str = "u-zeros",
) -> Iterator[Example | Rejected]:
    """Yield rows as examples, in order; without tags, these are the reports' frequent words.

    Args:
        rows: column -> cell, each; iterated twice if there are no tags.
        images: folder that image paths are relative to.
        fields: field -> its columns; ``image`` and ``report`` at least.
        labels: tag columns that hold labels.
        tag_separator, uncertain: as in `read`.
    """

    def report_of(row: Row) -> str:
        return cells.paragraphs([row.get(column) for column in fields["report"]])

    def name_of(row: Row, field: str) -> str:
        return cells.identifier(row.get(fields[field][0])) if field in fields else ""

    folder = ImageFolder(images)
    positive = (1, -1) if uncertain == "u-ones" else (1,)
    frequent = set() if "tags" in fields else _frequent_words(map(report_of, rows))
    for number, row in enumerate(rows, start=1):
        name = name_of(row, "image")
        study = name_of(row, "study")
        if not name:
            yield Rejected("", study, f"row names no image: row {number}")
            continue
        report = report_of(row)
        tags: list[str] = []
        try:
            image_id, file = folder.locate(name)
            for column in fields.get("tags", ()):
                if column not in labels:
                    tags += cells.values(row.get(column), tag_separator)
                elif cells.label(row.get(column)) in positive:
                    tags.append(column)
        except ImageError as error:
            yield Rejected(name, study or name, str(error))
            continue
        except ValueError as error:
            yield Rejected(image_id, study or image_id, f"tags cannot be read: {error}")
            continue
        if "tags" not in fields:
            words = " ".join(sentences(report)).split()
            tags = [word for word in dict.fromkeys(words) if word in frequent]
        yield Example(
            image_id=image_id,
            study=study or image_id,
            image=file,
            report=report,
            tags=tuple(tags),
            split=name_of(row, "split") or None,
            view=name_of(row, "view") or None,
        )


def _frequent_words(reports: Iterable[str]) -> set[str]:
    counts = Counter(
        word for report in reports for sentence in sentences(report) for word in sentence.split()
    )
    return set(list(by_frequency(counts))[:TOP_WORDS])


def _check_fields(columns: Columns) -> None:
    for field in columns:
        if field not in FIELDS:
            raise UsageError(
                f"columns: no field {field!r}{_nearest(field, FIELDS)}; the fields are "
                f"{', '.join(FIELDS)}"
            )


def _listed(named: str | Sequence[str]) -> list[str]:
    """The columns that a setting may name, where no single column is called so."""
    return [name.strip() for name in named.split(",")] if isinstance(named, str) else list(named)


def _candidates(columns: Columns) -> Callable[[str], bool]:
    """Whether a column may be one of which every cell decides: of tags, or of the split."""
    names = set()
    for field in ("tags", "split"):
        named = columns.get(field, field)
        names |= {*_listed(named), *([named] if isinstance(named, str) else [])}
    return lambda name: name in names or name.strip().lower() in ("tags", "split")


def chosen_columns(
    path: Path,
    there: Sequence[str],
    columns: Columns,
    needed: Collection[str],
) -> dict[str, list[str]]:
    """Return field -> its columns in a table, for those it has; UsageError as `read`.

    Args:
        there: all columns of the table.
        columns: field -> the column or columns that the user names.
        needed: fields that must be there.
    """
    fields: dict[str, list[str]] = {}
    for field in FIELDS:
        named = columns.get(field)
        if named is None:
            alike = [name for name in there if name.strip().lower() == field]
            names = [field] if field in there else alike
            if len(names) > 1:
                raise UsageError(
                    f"{path}: the columns {' and '.join(map(repr, names))} could both be the "
                    f"field {field}: name one as columns.{field}=..."
                )
            if not names and field not in needed:
                continue
            names = names or [field]
        else:
            names = [named] if isinstance(named, str) and named in there else _listed(named)
        if not names or (len(names) > 1 and field not in _SEVERAL):
            raise UsageError(f"columns: field {field} takes one column, and was given {names}")
        for name in names:
            if name not in there:
                raise UsageError(
                    f"{path}: no column {name!r} for field {field}{_nearest(name, there)}; the "
                    f"columns are {', '.join(there)}. `raymed prepare table {path}`, with no out=, "
                    "proposes which to take"
                )
        fields[field] = names
    return fields


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _check_split(path: Path, columns: Sequence[Column]) -> None:
    """Refuse a name that is no split's before any image is read."""
    for column in columns:
        for value, number in column.values.items():
            if side_of(value) is None:
                raise unknown_split(value, f"{path}, row {number}, column {column.name!r}")


def _labels(path: Path, columns: Sequence[Column]) -> list[str]:
    """The names of the columns that hold labels; UsageError if a cell or two are in the way."""
    for column in columns:
        if column.unlike and column.labels > _MOST_LABELS * column.filled:
            value, number = column.unlike
            raise UsageError(
                f"{path}, row {number}: column {column.name!r} holds {value!r}, and labels in "
                f"{column.labels:,} of {column.filled:,} cells: a column of labels holds 1, 0, -1 "
                "(uncertain) or nothing. Correct the cell, or leave the column out of columns.tags"
            )
    return [column.name for column in columns if column.is_label]


def _notes(
    there: Mapping[str, Column],
    fields: Mapping[str, Sequence[str]],
    unused: Collection[str],
    labels: Collection[str],
    tag_separator: str | None,
) -> Iterator[str]:
    used = [name for names in fields.values() for name in names]
    left = [name for name in there if name not in used]
    yield "Columns used: " + "; ".join(
        f"{field} from {', '.join(names)}" for field, names in fields.items()
    )
    if left:
        yield f"Columns left alone: {', '.join(left)}"
    if labels:
        yield f"Labels, each a tag where it is 1: {', '.join(labels)}"
    elif "tags" not in fields:
        yield "Tags: no column, so the reports' most frequent words"
        found = [name for name in left if there[name].is_label]
        if len(found) > 1:
            yield f"If these hold labels, columns.tags={','.join(found)} takes them as tags"
    kinds = {
        "split": [name for name in left if there[name].is_split],
        "view": [name for name in left if there[name].is_view],
    }
    for field, found in kinds.items():
        if found and field not in (*fields, *unused):
            values = ", ".join(there[found[0]].values)
            yield f"Column {found[0]} holds {values}: columns.{field}={found[0]} would take it"
    for name in fields.get("tags", ()):
        column = there[name]
        if column.labels and not column.is_label:
            yield (
                f"Column {name}: {column.labels:,} of {column.filled:,} cells hold 1, 0 or -1; as "
                "others do not, these are no labels, but tags that are called so"
            )
        if tag_separator is None and column.seems_undivided:
            yield (
                f"Column {name}: {column.commas:,} of {column.filled:,} cells hold commas, and "
                "none is a list or holds ; or |: a cell is one tag. If commas separate tags, give "
                "tag_separator=,"
            )
