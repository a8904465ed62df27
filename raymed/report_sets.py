"""Reports by the ids of their images or studies, from the files in which people keep them.

Accepted are JSON (``{id: report}``, a list of records, or an annotation file of R2Gen's form),
JSONL, CSV and Parquet tables, text files with a report to a line, and this program's own
``predictions.parquet``; a report is a text, or a list of its sentences. Reports are preprocessed
as they are read and kept in a memory-mapped temporary file; only a JSON object is read whole.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple
from uuid import uuid4

import numpy as np
import pyarrow as pa

from raymed.data.cells import identifier, text
from raymed.data.dataset import PreparedDataset
from raymed.data.mapped import Column, map_batches
from raymed.data.sources.table_files import TableRow, TableRows, is_json_list, read_text, text_lines
from raymed.data.split import split_named
from raymed.errors import UsageError
from raymed.metrics.resampling import study_numbers
from raymed.predictions_file import PredictionsFile
from raymed.progress import Progress
from raymed.report_text import NONE, PAPER, Report, TextRule
from raymed.storage import as_path, local_copy, reason

ID_COLUMNS = ("image_id", "id", "study_id", "study", "image")
REPORT_COLUMNS = ("report", "prediction", "hypothesis", "generated", "caption", "text")
REFERENCE_COLUMNS = ("reference", "ground_truth", "report", "caption", "text")
STUDY_COLUMNS = ("study", "study_id")
SENTENCES = {"report": "sentences", "reference": "reference_sentences"}
"""The columns of sentences in this program's own files."""
BLOCK = 256
"""Reports per record batch of the temporary file."""
_OPTIONAL = ("tags", "findings", "reference")
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
    report: Report
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
        rule: How texts are preprocessed. This program's own files already are.
        split: The split whose references are read; None: all.
        columns: The names of a table's columns of ids and reports, by ``id`` and ``report``.
    """

    side: Literal["report", "reference"]
    folder: Path
    rule: TextRule = PAPER
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
            found = _spooled(_own_rows(file, where, reading), where, reading, NONE)
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
        lines = enumerate(text_lines(path), start=1)
        return (Row(str(number), str(number), line) for number, line in lines)
    if kind != ".json" or is_json_list(path):
        return _table_rows(TableRows(path), where, reading)
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise UsageError(f"{where}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{where}: must be {{id: report}} or a list of records")
    if content and all(map(_is_record_list, content.values())):
        return _table_rows(_annotations(content, reading.split), where, reading)
    named = ((identifier(name), report) for name, report in content.items())
    return (_row(name, name, report, where) for name, report in named)


def _is_record_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(record, dict) for record in value)


def _annotations(content: dict[str, list[dict[str, Any]]], split: str | None) -> Iterator[Any]:
    """The records of an annotation file; their split is in them, or is their list's name."""
    for name, records in content.items():
        for record in records:
            own = str(record.get("split") or name)
            if split is None or (split_named(own) or own) == split:
                yield record


def _table_rows(rows: Iterable[TableRow], where: str, reading: Reading) -> Iterator[Row]:
    candidates = REPORT_COLUMNS if reading.side == "report" else REFERENCE_COLUMNS
    for row in rows:
        name = identifier(_cell(row, reading.columns.get("id"), ID_COLUMNS, where, "id"))
        report = _cell(row, reading.columns.get(reading.side), candidates, where, reading.side)
        studies = filter(None, (identifier(row.get(column)) for column in STUDY_COLUMNS))
        yield _row(name, next(studies, name), report, where)


def _cell(
    row: dict[str, Any], given: str | None, candidates: Sequence[str], where: str, key: str
) -> Any:
    for column in [given] if given else candidates:
        if column in row:
            return row[column]
    wanted = f"column {given!r}" if given else f"column {' or '.join(candidates)}"
    raise UsageError(
        f"{where}: has no {wanted}; its columns are {', '.join(map(str, row))}. Name the right one "
        f"with {key}=COLUMN"
    )


def _row(name: str, study: str, report: Any, where: str) -> Row:
    if not name:
        raise UsageError(f"{where}: a report has no id: {text(report)[:60]!r}")
    items = report if isinstance(report, list) else [report]
    if any(isinstance(item, dict) for item in items):
        raise UsageError(
            f"{where}: the report of {name} must be a text or a list of texts, not {report!r:.60}"
        )
    return Row(name, study, [text(item) for item in report] if items is report else text(report))


def _spooled(rows: Iterable[Row], where: str, reading: Reading, rule: TextRule) -> ReportSet:
    """Preprocess reports into a temporary file, which is then mapped into memory."""
    file = reading.folder / f"{uuid4().hex}.arrow"
    lengths: list[int] = []
    known: set[str] = set()
    has_sentences = False
    iterator = iter(rows)
    try:
        with (
            pa.ipc.new_file(str(file), _SCHEMA) as writer,
            Progress(f"reading {where}, reports", None) as progress,
        ):
            while block := list(islice(iterator, BLOCK)):
                sentences = [rule.sentences(row.report) for row in block]
                has_sentences |= any(
                    len(each) > 1 or (isinstance(row.report, str) and rule.ends(row.report))
                    for row, each in zip(block, sentences, strict=True)
                )
                known |= {n for row in block for n in _OPTIONAL if getattr(row, n) is not None}
                _write_block(writer, block, sentences, reading.folder)
                lengths.append(len(block))
                progress.advance(len(block))
    except (pa.ArrowException, UnicodeEncodeError) as error:
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
        tags=columns["tags"] if "tags" in known else None,
        findings=columns["findings"] if "findings" in known else None,
        references=columns["reference"] if "reference" in known else None,
        has_sentences=has_sentences,
    )
    _refuse_duplicates(found, where)
    return found


def _write_block(
    writer: pa.RecordBatchFileWriter, block: list[Row], sentences: list[list[str]], folder: Path
) -> None:
    """Write rows with their sentences; UsageError if the disk of the temporary files is full."""
    names, studies, _, *others = map(list, zip(*block, strict=True))
    columns = [names, studies, sentences, *others]
    arrays = list(map(pa.array, columns, _SCHEMA.types))
    try:
        writer.write_batch(pa.record_batch(arrays, schema=_SCHEMA))
    except OSError as error:
        raise UsageError(
            f"{folder}: cannot write a temporary file ({reason(error)}); free disk space there, "
            "or set TMPDIR to a folder with free space"
        ) from error


def _refuse_duplicates(reports: ReportSet, where: str) -> None:
    all_numbers = reports.numbers()
    numbers, counts = np.unique(all_numbers, return_counts=True)
    if len(numbers) < len(reports):
        repeated = numbers[counts > 1]
        first = int(np.flatnonzero(np.isin(all_numbers, repeated))[0])
        raise UsageError(
            f"{where}: ids with several reports: {len(repeated):,}, such as {reports.ids[first]}; "
            "each id must have one"
        )


def chained(sentences: Iterable[str]) -> str:
    """A report's sentences as one text."""
    return " ".join(filter(None, sentences))
