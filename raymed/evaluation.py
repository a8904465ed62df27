"""From a checkpoint and a split to predictions and scores, next to those of two baselines.

Decoding is free-running, references are the full preprocessed reports, and a whole split is scored
at once. Predictions are written as they are generated, and scored from the file, so that only those
of a few hundred images are in memory at a time.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymed.config import Config
from raymed.data.batches import TokenisedSplit
from raymed.data.dataset import PreparedDataset, Split
from raymed.data.mapped import Column
from raymed.errors import UsageError
from raymed.generation import Report
from raymed.metrics.baselines import NONE, BlockMeans, Described, best_constant, nearest
from raymed.metrics.ngrams import CHUNK, chunks, distinct
from raymed.metrics.normality import normality_share
from raymed.metrics.scoring import Predictions, Scores, score_split
from raymed.metrics.table import objective_metrics, scored_metrics
from raymed.model.system import System
from raymed.progress import track
from raymed.provenance import Record, made_from, refuse_to_overwrite, with_record
from raymed.scores import Evaluation
from raymed.storage import AnyPath, atomic_write_text, local_copy, reason, user_output
from raymed.training.checkpoint import Checkpoint
from raymed.training.pooled_features import pooled_features
from raymed.training.split_reports import write_reports
from raymed.training.trained_on import overlap
from raymed.training.worker import local_device

RANKED_TAGS = 20
CONSTANT, NEAREST, FEATURES = BASELINES = (
    "constant report",
    "nearest image",
    "nearest image (features)",
)
"""The rows of the baselines. Images are compared by their pixels, or by the model's encoder."""
PREDICTIONS_FILE = "predictions.parquet"
SCORES_FILE = "scores.json"
BASELINE_COLUMNS = "constant_report", "nearest_report", "nearest_by_features_report"
"""The columns of their reports in the file of predictions."""


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


@dataclass(frozen=True)
class SplitReports:
    """The reports and tags that a model or a baseline gives to each image of a split.

    Attributes:
        sentences: The sentences of each image's report; None if it writes none.
        tags: The `RANKED_TAGS` most probable tags of each image, in order; fewer if the vocabulary
            is smaller.
    """

    sentences: Stream[list[str]] | None
    tags: Stream[list[str]]

    @property
    def texts(self) -> Stream[str]:
        assert self.sentences is not None
        return self.sentences.map(lambda report: " ".join(filter(None, report)))


def evaluate(checkpoint: Checkpoint, config: Config, split_name: str, out: AnyPath) -> Evaluation:
    """Generate the reports of a split, score them, and write predictions and scores to ``out``.

    Args:
        checkpoint: The model.
        config: The checkpoint's configuration, with any changes to ``data.path`` and
            ``generation``.
        split_name: ``train``, ``val`` or ``test``.
        out: Folder for ``predictions.parquet`` and ``scores.json``.

    Raises:
        UsageError: The dataset cannot be opened, its images have another size, or ``out`` contains
            results of another checkpoint, dataset or configuration.
    """
    dataset = _open_dataset(checkpoint, config)
    record = made_from(checkpoint, config, dataset, split_name)
    refuse_to_overwrite(out, (PREDICTIONS_FILE, SCORES_FILE), record)
    split = dataset.split(split_name)
    trained_on = overlap(checkpoint, dataset, split_name)
    model = checkpoint.build_model(local_device())
    without_model = baselines(dataset, split_name, None) | {
        FEATURES: _nearest_by_features(model, checkpoint.config, dataset, split_name)
    }
    writes = model.writer is not None
    reports = _generate_reports(model, checkpoint, config, split)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({reason(error)})") from error
    _write_predictions(out / PREDICTIONS_FILE, split, writes, reports, without_model, record)
    rows: dict[str, Scores] = {}
    unavailable: dict[str, str] = {}
    with local_copy(out / PREDICTIONS_FILE) as predictions:
        sentences = Stream(len(split), lambda: read_column(predictions, "sentences"))
        tags = Stream(len(split), lambda: read_column(predictions, "predicted_tags"))
        system = SplitReports(sentences if writes else None, tags)
        for name, written in {config.model.system: system, **without_model}.items():
            # The same lexicon for all, so that METEOR's paraphrase table is built once per dataset.
            lexicon = chain(dataset.words, split.references)
            scored = _predictions(split, written, lexicon)
            rows[name], reasons = score_split(scored, scored_metrics())
            unavailable |= reasons
    evaluation = Evaluation(
        split=split_name,
        images=len(split),
        rows=rows,
        truth_normality=normality_share(chain.from_iterable(split.sentences)),
        truth_distinct=distinct(split.references),
        unavailable=unavailable,
        trained_on=trained_on,
        made_from=record,
    )
    try:
        atomic_write_text(out / SCORES_FILE, json.dumps(evaluation.as_json(), indent=1))
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({reason(error)})") from error
    return evaluation


def _open_dataset(checkpoint: Checkpoint, config: Config) -> PreparedDataset:
    """Open the dataset, whose images must have the size of those the model was trained on."""
    dataset = PreparedDataset.open(config.data.path)
    if dataset.info.image_size != checkpoint.image_size:
        raise UsageError(
            f"{config.data.path}: its images have {dataset.info.image_size} pixels, but "
            f"{checkpoint.path} was trained on {checkpoint.image_size}: prepare it again with "
            f"image_size={checkpoint.image_size}"
        )
    return dataset


def baselines(
    dataset: PreparedDataset, split_name: str, images: int | None
) -> dict[str, SplitReports]:
    """The two baselines that need no model, on the first ``images`` images of a split (None: all).

    The constant report, the best on the training split, is given to every image, with the most
    frequent tags. The nearest training image is found by the images' pixels; see `_of_nearest`.
    """
    train, split = dataset.split("train"), dataset.split(split_name)
    count = len(split) if images is None else min(images, len(split))
    constant = best_constant(train.references)
    row = next(row for row, text in enumerate(train.references) if text == constant)
    fixed, frequent = train.sentences[row], dataset.tags[:RANKED_TAGS]
    of_each = BlockMeans(train), BlockMeans(split)
    return {
        CONSTANT: SplitReports(
            Stream(count, lambda: repeat(fixed)), Stream(count, lambda: repeat(frequent))
        ),
        NEAREST: _of_nearest(dataset, split_name, count, *of_each),
    }


def _nearest_by_features(
    model: System, config: Config, dataset: PreparedDataset, split_name: str
) -> SplitReports:
    """The nearest training image by the features of a model's encoder, for a whole split."""
    train, split = (pooled_features(model, config, dataset, name) for name in ("train", split_name))
    return _of_nearest(dataset, split_name, len(split), train, split)


def _of_nearest(
    dataset: PreparedDataset,
    split_name: str,
    count: int,
    of_train: Described,
    of_split: Described,
) -> SplitReports:
    """The reports of the nearest training images, for the first ``count`` images of a split.

    Each is given with that image's tags, followed by the most frequent ones. A training image's own
    study does not count as near: it has the report itself, which no image of another split could
    find where studies are kept together. If there is no other study, the report is empty.
    """
    train, frequent = dataset.split("train"), dataset.tags[:RANKED_TAGS]
    apart = None
    if split_name == "train":
        studies = np.fromiter(map(hash, train.studies), np.int64, len(train))
        apart = studies, studies
    neighbours = nearest(of_train, of_split, count, apart)

    def of_neighbours(column: Column[list[str]]) -> Stream[list[str]]:
        return Stream(
            count, lambda: (column[row] if row != NONE else [] for row in map(int, neighbours))
        )

    return SplitReports(
        of_neighbours(train.sentences),
        of_neighbours(train.tags).map(lambda tags: _ranked([*tags, *frequent])),
    )


def baseline_scores(
    dataset: PreparedDataset, split_name: str, images: int | None
) -> dict[str, Scores]:
    """Scores of the two baselines, on a split's first ``images`` images (None: all).

    Measured is what a sweep can search for.
    """
    split = dataset.split(split_name)
    metrics = [metric for metric in objective_metrics() if metric.module]
    return {
        name: score_split(_predictions(split, written), metrics)[0]
        for name, written in baselines(dataset, split_name, images).items()
    }


def _generate_reports(
    model: System, checkpoint: Checkpoint, config: Config, split: Split
) -> Iterator[Report]:
    """Each image's report as it is generated, with its `RANKED_TAGS` most probable tags."""
    limits = config.generation.max_sentences, config.generation.max_words
    tokenised = TokenisedSplit(split, checkpoint.vocabulary, *limits)
    rows = np.arange(len(split))
    written = write_reports(model, tokenised, rows, config)
    # All tags of a vocabulary of 1,000 would take 80 KB per report, with their probabilities.
    return (
        replace(report, tags=report.tags[:RANKED_TAGS])
        for _, report in track(written, "writing reports", len(rows))
    )


def _predictions(split: Split, written: SplitReports, lexicon: Iterable[str] = ()) -> Predictions:
    """A writer's predictions for the first images of a split, as many as it has, with the truth."""
    count = len(written.tags)
    writes = written.sentences is not None
    return Predictions(
        references=Stream(count, lambda: iter(split.references)),
        reports=written.texts if writes else None,
        sentences=written.sentences,
        tags=Stream(count, lambda: iter(split.tags)),
        predicted_tags=written.tags,
        lexicon=lexicon,
    )


def _ranked(tags: list[str]) -> list[str]:
    return list(dict.fromkeys(tags))[:RANKED_TAGS]


def _write_predictions(
    path: AnyPath,
    split: Split,
    writes: bool,
    reports: Iterator[Report],
    without_model: dict[str, SplitReports],
    record: Record,
) -> None:
    """Write predictions in chunks as they are generated."""
    text, texts = pa.string(), pa.list_(pa.string())
    own = {"report": text, "sentences": texts} if writes else {}
    names = {"image_id": text, "study": text, "reference": text, **own}
    names |= {"tags": texts, "predicted_tags": texts}
    names |= dict.fromkeys(BASELINE_COLUMNS, text)
    schema = with_record(pa.schema(names.items()), record)
    rows = zip(
        split.image_ids,
        split.studies,
        split.references,
        split.tags,
        reports,
        *(written.texts for written in without_model.values()),
        strict=True,
    )
    with user_output(path) as partial, pq.ParquetWriter(partial, schema) as writer:
        for some in chunks(rows):
            image_ids, studies, references, tags, by_model, *others = zip(*some, strict=True)
            columns = {
                "image_id": image_ids,
                "study": studies,
                "reference": references,
                "report": [report.text for report in by_model],
                "sentences": [report.sentences for report in by_model],
                "tags": tags,
                "predicted_tags": [[tag for tag, _ in report.tags] for report in by_model],
                **dict(zip(BASELINE_COLUMNS, others, strict=True)),
            }
            writer.write_table(pa.table({name: columns[name] for name in names}, schema))


def read_column(predictions: Path, name: str) -> Iterator[Any]:
    """A column of a file of predictions, image by image."""
    # By default a batch would be 65,536 rows long, all of them Python lists at once.
    with pq.ParquetFile(predictions) as file:
        for batch in file.iter_batches(CHUNK, columns=[name]):
            yield from batch.column(0).to_pylist()
