"""Reports by the ids of their images or studies, from the files in which people keep them.

Accepted are JSON (``{id: report}``, a list of records, or an annotation file of R2Gen's form),
JSONL, CSV and Parquet tables, text files with a report to a line, and this program's own
``predictions.parquet``; a report is a text, or a list of its sentences. Reports are preprocessed
as they are read and kept in a memory-mapped temporary file; only a JSON file is read whole.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from raymed.data.cells import identifier, paragraphs, text
from raymed.data.dataset import PreparedDataset
from raymed.data.mapped import Column, map_batches
from raymed.data.sources.table_files import TableRows, read_text
from raymed.data.text import preprocess
from raymed.errors import UsageError
from raymed.metrics.resampling import study_numbers
from raymed.predictions_file import PredictionsFile
from raymed.progress import Progress
from raymed.storage import as_path, local_copy, reason

ID_COLUMNS = ("image_id", "id", "study_id", "study", "image")
REPORT_COLUMNS = ("report", "prediction", "hypothesis", "generated", "caption", "text")
REFERENCE_COLUMNS = ("reference", "ground_truth", "report", "caption", "text")
STUDY_COLUMNS = ("study", "study_id")
TEXT_RULES = ("paper", "none")
SENTENCES = {"report": "sentences", "reference": "reference_sentences"}
"""The columns of sentences in this program's own files."""
BLOCK = 256
"""Reports per record batch of the temporary file."""
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("study", pa.string()),
        ("sentences", pa.list_(pa.string())),
        ("tags", pa.list_(pa.string())),
        ("findings", pa.list_(pa.string())),
        ("reference", pa.string()),
    ]
)


class Row(NamedTuple):
    """One report as it is read."""

    name: str
    study: str
    report: str | list[str]
    tags: list[str] | None = None
    findings: list[str] | None = None
    reference: str | None = None


@dataclass(frozen=True)
class ReportSet:
    """Reports, an entry for each, in the order of their source.

    Attributes:
        ids: The ids of their images, or of their studies.
        studies: The ids of their studies.
        sentences: Their sentences: words separated by spaces.
        tags: The images' tags; of predictions those predicted, likeliest first. None if unknown.
        findings: The names of the images' findings; None if unknown.
        references: What the reports were scored against before, if they were.
        has_sentences: Whether it is known where sentences end: some report has more than one, or
            ends with a full stop.
    """

    ids: Sequence[str]
    studies: Sequence[str]
    sentences: Sequence[list[str]]
    tags: Sequence[list[str]] | None
    findings: Sequence[list[str]] | None
    references: Sequence[str] | None
    has_sentences: bool

    def __len__(self) -> int:
        return len(self.ids)

    def numbers(self) -> np.ndarray:
        """A number for each id, int64 [reports]."""
        return study_numbers(self.ids, len(self))


@dataclass(frozen=True)
class Reading:
    """How a file of reports is read.

    Attributes:
        side: Whether it contains predictions or references.
        folder: An existing folder for the temporary file, which must outlive the reports.
        rule: How texts are preprocessed: ``paper``, as when a dataset is prepared, which leaves
            lower-case words as they are; or ``none``, which only separates them by single spaces.
        split: The split whose references are read; None: all.
        columns: The names of a table's columns of ids and reports, by ``id`` and ``report``.
    """

    side: Literal["report", "reference"]
    folder: Path
    rule: str = "paper"
    split: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


def read_reports(where: str, reading: Reading) -> ReportSet:
    """Read reports from a file or URI.

    Raises:
        UsageError: It cannot be read, has no reports or has two of one id.
    """
    path = as_path(where)
    try:
        with local_copy(path) as local:
            if not PredictionsFile.recognises(local):
                return _spooled(_rows(local, where, reading), where, reading, reading.rule)
            file = PredictionsFile(local)
            found = _spooled(_own_rows(file, where, reading), where, reading, "none")
            return replace(found, has_sentences=SENTENCES[reading.side] in file.columns)
    except OSError as error:
        raise UsageError(f"{where}: cannot be read ({reason(error)})") from error


def of_split(dataset: PreparedDataset, split_name: str) -> ReportSet:
    """The references of a prepared dataset's split."""
    split = dataset.split(split_name)
    return ReportSet(
        ids=split.image_ids,
        studies=split.studies,
        sentences=split.sentences,
        tags=split.tags,
        findings=split.finding_names if any(split.finding_names) else None,
        references=None,
        has_sentences=any(len(sentences) > 1 for sentences in split.sentences),
    )


def _own_rows(file: PredictionsFile, where: str, reading: Reading) -> Iterator[Row]:
    """The rows of a file that this program wrote: its predictions, or its references."""
    if reading.side not in file.columns:
        raise UsageError(f"{where}: has no generated reports; its system predicts tags alone")
    of_reports = SENTENCES[reading.side]
    of_tags = {"report": "predicted_tags", "reference": "tags"}[reading.side]
    texts = file.column(of_reports if of_reports in file.columns else reading.side)
    nothing = file.column("image_id").map(lambda _: None)
    tags, findings = (
        file.column(name) if name in file.columns else nothing for name in (of_tags, "findings")
    )
    columns = file.column("image_id"), file.column("study"), texts, tags, findings
    for values in zip(*columns, file.column("reference"), strict=True):
        yield Row(*values)


def _rows(path: Path, where: str, reading: Reading) -> Iterator[Row]:
    """The reports of a file of any other form."""
    kind = path.suffix.lower()
    if kind == ".txt":
        # A text file ends with a line break, after which there is no further report.
        lines = read_text(path).removesuffix("\n").split("\n")
        return (Row(str(n), str(n), line) for n, line in enumerate(lines, start=1))
    if kind != ".json":
        return _table_rows(TableRows(path), where, reading)
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise UsageError(f"{where}: not JSON: {error}") from error
    if isinstance(content, list):
        return _table_rows(content, where, reading)
    if not isinstance(content, dict):
        raise UsageError(f"{where}: must be {{id: report}} or a list of records")
    if content and all(map(_is_record_list, content.values())):
        return _table_rows(_annotations(content, reading.split), where, reading)
    return (_row(name, name, report, where) for name, report in content.items())


def _is_record_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(record, dict) for record in value)


def _annotations(content: dict[str, list[dict[str, Any]]], split: str | None) -> Iterator[Any]:
    """The records of an annotation file; their split is in them, or is their list's name."""
    for name, records in content.items():
        for record in records:
            if split is None or (record.get("split") or name) == split:
                yield record


def _table_rows(rows: Iterable[Any], where: str, reading: Reading) -> Iterator[Row]:
    candidates = REPORT_COLUMNS if reading.side == "report" else REFERENCE_COLUMNS
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UsageError(f"{where}, record {number}: must be an object, not {row!r:.60}")
        name = _cell(row, reading.columns.get("id"), ID_COLUMNS, where, "id")
        report = _cell(row, reading.columns.get(reading.side), candidates, where, reading.side)
        studies = (identifier(row[column]) for column in STUDY_COLUMNS if row.get(column))
        yield _row(identifier(name), next(studies, identifier(name)), report, where)


def _cell(
    row: dict[str, Any], given: str | None, candidates: Sequence[str], where: str, key: str
) -> Any:
    for column in [given] if given else candidates:
        if column in row:
            return row[column]
    wanted = f"column {given!r}" if given else f"column {' or '.join(candidates)}"
    raise UsageError(
        f"{where}: has no {wanted}, but {', '.join(map(str, row))}; name the column with "
        f"{key}=COLUMN"
    )


def _row(name: str, study: str, report: Any, where: str) -> Row:
    if not name:
        raise UsageError(f"{where}: a report has no id: {text(report)[:60]!r}")
    if isinstance(report, list):
        return Row(name, study, list(map(text, report)))
    if isinstance(report, dict):
        raise UsageError(f"{where}: the report of {name} must be a text or a list, not {report}")
    return Row(name, study, text(report))


def _spooled(rows: Iterable[Row], where: str, reading: Reading, rule: str) -> ReportSet:
    """Preprocess reports into a temporary file, which is then mapped into memory."""
    file = reading.folder / f"{hashlib.sha256(where.encode()).hexdigest()}-{reading.side}.arrow"
    lengths: list[int] = []
    has_sentences, known = False, dict.fromkeys(("tags", "findings", "reference"), False)
    iterator = iter(rows)
    try:
        with (
            pa.ipc.new_file(str(file), _SCHEMA) as writer,
            Progress(f"reading {where}, reports", None) as progress,
        ):
            while block := list(islice(iterator, BLOCK)):
                sentences = [sentences_of(row.report, rule) for row in block]
                has_sentences |= any(
                    _shows_sentences(row.report, each)
                    for row, each in zip(block, sentences, strict=True)
                )
                values = [list(column) for column in zip(*block, strict=True)]
                for name, column in zip(known, values[3:], strict=True):
                    known[name] |= any(value is not None for value in column)
                arrays = [values[0], values[1], sentences, *values[3:]]
                typed = list(map(pa.array, arrays, _SCHEMA.types))
                writer.write_batch(pa.record_batch(typed, schema=_SCHEMA))
                lengths.append(len(block))
                progress.advance(len(block))
    except pa.ArrowException as error:
        raise UsageError(f"{where}: cannot be read: {error}") from error
    if not lengths:
        split = f" of split {reading.split}" if reading.split else ""
        raise UsageError(f"{where}: has no reports{split}")
    batches = map_batches(file, _SCHEMA, lengths)
    assert batches is not None
    columns: dict[str, Column[Any]] = {
        name: Column([batch.column(name) for batch in batches], BLOCK, lambda value: value)
        for name in _SCHEMA.names
    }
    found = ReportSet(
        ids=columns["id"],
        studies=columns["study"],
        sentences=columns["sentences"],
        tags=columns["tags"] if known["tags"] else None,
        findings=columns["findings"] if known["findings"] else None,
        references=columns["reference"] if known["reference"] else None,
        has_sentences=has_sentences,
    )
    _refuse_duplicates(found, where)
    return found


def _shows_sentences(report: str | list[str], sentences: list[str]) -> bool:
    return len(sentences) > 1 or (isinstance(report, str) and report.rstrip().endswith("."))


def sentences_of(report: str | list[str], rule: str) -> list[str]:
    """The sentences of a report, which is a text or a list of sentences or paragraphs.

    Args:
        report: The report.
        rule: As in `Reading`.
    """
    if rule == "paper":
        return preprocess(paragraphs(report) if isinstance(report, list) else report).sentences
    parts = report if isinstance(report, list) else [report]
    return [" ".join(part.split()) for part in parts]


def _refuse_duplicates(reports: ReportSet, where: str) -> None:
    numbers, counts = np.unique(reports.numbers(), return_counts=True)
    if len(numbers) < len(reports):
        repeated = numbers[counts > 1]
        first = int(np.flatnonzero(reports.numbers() == repeated[0])[0])
        raise UsageError(
            f"{where}: has several reports of {len(repeated):,} ids, such as {reports.ids[first]}; "
            "each id must have one"
        )


def chained(sentences: Iterable[str]) -> str:
    """A report's sentences as one text."""
    return " ".join(filter(None, sentences))
