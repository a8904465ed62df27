"""``predictions.parquet``: the reports of a split beside the references, and scoring from the file.

A row is an image. What is not known has no column. Rows are written as they are generated and read
a few hundred at a time, so that a split may be of any size.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymed.metrics.ngrams import CHUNK, chunks, distinct
from raymed.metrics.normality import normality_share
from raymed.metrics.resampling import Interval, intervals, study_numbers
from raymed.metrics.scoring import PerImage, Predictions, Scores, score_split
from raymed.metrics.table import scored_metrics
from raymed.provenance import KEY, Record, with_record
from raymed.storage import AnyPath, local_copy, user_output

PREDICTIONS_FILE = "predictions.parquet"
PER_REPORT_FILE = "per_report.parquet"
SCORES_FILE = "scores.json"
CONSTANT, NEAREST, FEATURES = BASELINES = (
    "constant report",
    "nearest image",
    "nearest image (features)",
)
"""The rows of the baselines. Images are compared by their pixels, or by the model's encoder."""
PREFIXES = {CONSTANT: "constant_", NEAREST: "nearest_", FEATURES: "nearest_by_features_"}
"""What the names of a baseline's columns begin with."""
NEEDED = ("image_id", "study", "reference")

T = TypeVar("T", covariant=True)
Other = TypeVar("Other")


class Stream(Generic[T]):
    """A sized iterable with an entry for each image, computed anew on each iteration."""

    def __init__(self, length: int, entries: Callable[[], Iterator[T]]) -> None:
        self._length = length
        self._entries = entries

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        return islice(self._entries(), self._length)

    def map(self, function: Callable[[T], Other]) -> "Stream[Other]":
        return Stream(self._length, lambda: map(function, self))


class PredictionsFile:
    """A local file of predictions, opened for reading.

    Its columns are ``image_id``, ``study``, ``reference`` (the full preprocessed report) and its
    ``reference_sentences``, the ``tags`` and the names of the ``findings``; the generated
    ``report``, its ``sentences`` and the ``predicted_tags``, likeliest first; and the last three
    again for each baseline, with the names in `PREFIXES` before them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns = frozenset(pq.read_schema(path).names)
        self._images = pq.read_metadata(path).num_rows

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether this program wrote the file."""
        if path.suffix != ".parquet":
            return False
        try:
            schema = pq.read_schema(path)
        except (OSError, pa.ArrowException):
            return False
        return KEY.encode() in (schema.metadata or {}) and {*NEEDED}.issubset(schema.names)

    def __len__(self) -> int:
        return self._images

    def column(self, name: str) -> Stream[Any]:
        """A column's values, read anew on each iteration."""
        return Stream(self._images, lambda: self._read(name))

    def _read(self, name: str) -> Iterator[Any]:
        # By default a batch would be 65,536 rows long, all of them Python lists at once.
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(CHUNK, columns=[name]):
                yield from batch.column(0).to_pylist()

    def rows(self, name: str) -> dict[str, str]:
        """The names of what wrote reports or tags, and the prefixes of their columns.

        Args:
            name: What to call the system whose reports the file is for.
        """
        prefixes = {name: "", **PREFIXES}
        return {
            row: prefix
            for row, prefix in prefixes.items()
            if self.columns & {f"{prefix}report", f"{prefix}predicted_tags"}
        }

    def predictions(self, prefix: str, lexicon: Iterable[str] = ()) -> Predictions:
        """The predictions in the columns whose names begin with ``prefix``.

        Args:
            prefix: The prefix.
            lexicon: Further words of METEOR's table of paraphrases.
        """

        def known(name: str) -> Stream[Any] | None:
            return self.column(name) if name in self.columns else None

        reports = [f"{each}report" for each in ("", *PREFIXES.values())]
        texts = [self.column(name) for name in reports if name in self.columns]
        references = self.column("reference")
        return Predictions(
            references=references,
            reports=known(f"{prefix}report"),
            sentences=known(f"{prefix}sentences"),
            tags=known("tags") or references.map(lambda _: []),
            predicted_tags=known(f"{prefix}predicted_tags"),
            # The same for all rows, so that METEOR's paraphrase table is built once per dataset.
            lexicon=_Chained((lexicon, references, *texts)),
            findings=known("findings"),
        )

    def study_numbers(self) -> np.ndarray:
        """A number for the study of each image, int64 [images]."""
        return study_numbers(self.column("study"), self._images)


class _Chained:
    """Several iterables as one that can be iterated over repeatedly."""

    def __init__(self, parts: tuple[Iterable[str], ...]) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self._parts)


def write_predictions(
    path: AnyPath, columns: Iterable[str], rows: Iterable[Mapping[str, Any]], record: Record
) -> None:
    """Write predictions in chunks as they are generated.

    Args:
        path: The file.
        columns: The names of its columns; those of sentences, tags and findings contain lists.
        rows: The values of each image by column.
        record: What the predictions were made from.

    Raises:
        UsageError: The file cannot be written.
    """
    lists = ("sentences", "tags", "findings")
    types = {
        name: pa.list_(pa.string()) if name.endswith(lists) else pa.string() for name in columns
    }
    schema = with_record(pa.schema(types.items()), record)
    with user_output(path) as partial, pq.ParquetWriter(partial, schema) as writer:
        for some in chunks(rows):
            writer.write_table(pa.Table.from_pylist(some, schema))


@dataclass(frozen=True)
class FileScores:
    """The scores of a file of predictions.

    Attributes:
        rows: The scores by the names of what wrote the reports, the system first.
        intervals: Bootstrap intervals over studies, by the same names and by metric.
        studies: The number of studies.
        truth_normality: The normality share of the references; None if it is not known where their
            sentences end.
        truth_distinct: The number of distinct references.
        unavailable: Why this machine cannot compute a metric, by key.
    """

    rows: dict[str, Scores]
    intervals: dict[str, dict[str, Interval]]
    studies: int
    truth_normality: float | None
    truth_distinct: int
    unavailable: dict[str, str]


def score_file(
    path: AnyPath, name: str, per_report: AnyPath, record: Record, lexicon: Iterable[str] = ()
) -> FileScores:
    """Score predictions, and write the scores of each of the system's reports.

    Args:
        path: The file of predictions.
        name: What to call the system.
        per_report: The Parquet file for the scores of the reports.
        record: What the scores were made from.
        lexicon: Further words of METEOR's table of paraphrases.

    Raises:
        UsageError: A file cannot be written.
    """
    rows: dict[str, Scores] = {}
    bounds: dict[str, dict[str, Interval]] = {}
    unavailable: dict[str, str] = {}
    with local_copy(path) as local:
        file = PredictionsFile(local)
        studies = file.study_numbers()
        for row, prefix in file.rows(name).items():
            found = score_split(file.predictions(prefix, lexicon), scored_metrics())
            rows[row] = found.scores
            unavailable |= found.unavailable
            per_image = list(found.per_image.values())
            bounds[row] = intervals(per_image, studies)
            if row == name:
                _write_per_report(per_report, file, per_image, record)
        known = "reference_sentences" in file.columns
        sentences = chain.from_iterable(file.column("reference_sentences") if known else ())
        return FileScores(
            rows=rows,
            intervals=bounds,
            studies=len(np.unique(studies)),
            truth_normality=normality_share(sentences) if known else None,
            truth_distinct=distinct(file.column("reference")),
            unavailable=unavailable,
        )


def _write_per_report(
    path: AnyPath, file: PredictionsFile, per_image: Sequence[PerImage], record: Record
) -> None:
    """Write the scores of each report, null where they are undefined."""
    one = np.ones(1)
    keys = [key for each in per_image for key in each.scores(each.counts[:1], one)]
    types = {"image_id": pa.string(), "study": pa.string(), **dict.fromkeys(keys, pa.float64())}
    schema = with_record(pa.schema(types.items()), record)
    start = 0
    with user_output(path) as partial, pq.ParquetWriter(partial, schema) as writer:
        for some in chunks(zip(file.column("image_id"), file.column("study"), strict=True)):
            image_ids, studies = zip(*some, strict=True)
            stop = start + len(some)
            values = [pa.array(each, pa.string()) for each in (image_ids, studies)]
            for each in per_image:
                scores = each.scores(each.counts[start:stop].astype(np.float64), np.ones(len(some)))
                values += [pa.array(column, from_pandas=True) for column in scores.values()]
            writer.write_table(pa.table(values, schema=schema))
            start = stop
