"""From a checkpoint and a split to predictions and scores, next to those of two baselines.

Decoding is free-running, references are the full preprocessed reports, and a whole split is scored
at once. Predictions are written as they are generated, and scored from the file, so that only those
of a few hundred images are in memory at a time.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import numpy as np

from raymed.config import Config
from raymed.data.batches import TokenisedSplit
from raymed.data.dataset import PreparedDataset
from raymed.data.studies import Examples, by_example, open_examples
from raymed.errors import UsageError
from raymed.generation import Report
from raymed.metrics.baselines import NONE, BlockMeans, Described, best_constant, nearest
from raymed.metrics.scoring import Predictions, Scores, score_split
from raymed.metrics.table import objective_metrics
from raymed.model.system import System
from raymed.predictions_file import (
    CONSTANT,
    FEATURES,
    NEAREST,
    PER_REPORT_FILE,
    PREDICTIONS_FILE,
    PREFIXES,
    SCORES_FILE,
    Stream,
    score_file,
    write_predictions,
)
from raymed.progress import track
from raymed.provenance import made_from, refuse_to_overwrite
from raymed.scores import Evaluation
from raymed.storage import AnyPath, reason
from raymed.training.checkpoint import Checkpoint
from raymed.training.pooled_features import pooled_features
from raymed.training.split_reports import write_reports
from raymed.training.trained_on import overlap
from raymed.training.worker import local_device

RANKED_TAGS = 20


@dataclass(frozen=True)
class SplitReports:
    """The reports and tags that a baseline gives to each image of a split.

    Attributes:
        sentences: The sentences of each image's report.
        tags: The `RANKED_TAGS` most probable tags of each image, in order; fewer if the vocabulary
            is smaller.
    """

    sentences: Stream[list[str]]
    tags: Stream[list[str]]

    @property
    def texts(self) -> Stream[str]:
        return self.sentences.map(lambda report: " ".join(filter(None, report)))


def evaluate(checkpoint: Checkpoint, config: Config, split_name: str, out: AnyPath) -> Evaluation:
    """Generate the reports of a split, score them, and write predictions and scores to ``out``.

    Args:
        checkpoint: The model.
        config: The checkpoint's configuration, with any changes to ``data.path`` and
            ``generation``.
        split_name: ``train``, ``val`` or ``test``.
        out: Folder for ``predictions.parquet``, ``scores.json`` and ``per_report.parquet``.

    Raises:
        UsageError: The dataset cannot be opened, its images have another size, or ``out`` contains
            results of another checkpoint, dataset or configuration.
    """
    dataset = _open_dataset(checkpoint, config)
    record = made_from(checkpoint, config, dataset, split_name)
    refuse_to_overwrite(out, (PREDICTIONS_FILE, SCORES_FILE, PER_REPORT_FILE), record)
    images_per_study = config.data.images_per_study
    split = open_examples(dataset, split_name, images_per_study)
    trained_on = overlap(checkpoint, dataset, split_name)
    model = checkpoint.build_model(local_device())
    without_model = baselines(dataset, split_name, None, images_per_study) | {
        FEATURES: _nearest_by_features(model, checkpoint.config, dataset, split_name)
    }
    writes = model.writer is not None
    reports = _generate_reports(model, checkpoint, config, split)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({reason(error)})") from error
    columns = [*truth_columns(split), *(["report", "sentences"] if writes else [])]
    columns += ["predicted_tags", *baseline_columns(without_model)]
    rows = zip(truth_rows(split), reports, baseline_rows(without_model), strict=True)
    written = (
        {
            **truth,
            "report": report.text,
            "sentences": report.sentences,
            "predicted_tags": [tag for tag, _ in report.tags],
            **others,
        }
        for truth, report, others in rows
    )
    write_predictions(out / PREDICTIONS_FILE, columns, written, record)
    scores = score_file(
        out / PREDICTIONS_FILE,
        config.model.system,
        out / PER_REPORT_FILE,
        record,
        lexicon=dataset.words,
    )
    evaluation = Evaluation(
        **vars(scores),
        split=split_name,
        images=dataset.info.counts[split_name],
        trained_on=trained_on,
        made_from=record,
    )
    evaluation.write(out / SCORES_FILE)
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
    dataset: PreparedDataset, split_name: str, first: int | None, images_per_study: int = 1
) -> dict[str, SplitReports]:
    """The two baselines that need no model, on a split's ``first`` examples (None: all).

    The constant report, the best on the training split, is given to every example, with the most
    frequent tags. The nearest training image is found by the images' pixels; see `_of_nearest`.

    Args:
        dataset: The dataset.
        split_name: The name of one of its splits.
        first: How many examples; None: all.
        images_per_study: Above 1, the examples are studies.
    """
    train, split = _compared(dataset, split_name, images_per_study)
    count = len(split) if first is None else min(first, len(split))
    constant = best_constant(train.references)
    row = next(row for row, text in enumerate(train.references) if text == constant)
    fixed, frequent = train.sentences[row], dataset.tags[:RANKED_TAGS]
    of_images = BlockMeans(dataset.split("train")), BlockMeans(dataset.split(split_name))
    return {
        CONSTANT: SplitReports(
            Stream(count, lambda: repeat(fixed)), Stream(count, lambda: repeat(frequent))
        ),
        NEAREST: _of_nearest((train, split), of_images, count, frequent),
    }


def _compared(
    dataset: PreparedDataset, split_name: str, images_per_study: int
) -> tuple[Examples, Examples]:
    """The examples of the training split and of a split; twice the same of the training split."""
    train = open_examples(dataset, "train", images_per_study)
    if split_name == "train":
        return train, train
    return train, open_examples(dataset, split_name, images_per_study)


def _nearest_by_features(
    model: System, config: Config, dataset: PreparedDataset, split_name: str
) -> SplitReports:
    """The nearest training image by the features of a model's encoder, for a whole split."""
    splits = _compared(dataset, split_name, config.data.images_per_study)
    train, split = (pooled_features(model, config, dataset, name) for name in ("train", split_name))
    return _of_nearest(splits, (train, split), len(splits[1]), dataset.tags[:RANKED_TAGS])


def _of_nearest(
    splits: tuple[Examples, Examples],
    of_images: tuple[Described, Described],
    count: int,
    frequent: list[str],
) -> SplitReports:
    """The reports of the nearest training images, for the first ``count`` examples of a split.

    Each is given with that image's tags, followed by the most frequent ones. A training image's own
    study does not count as near: it has the report itself, which no image of another split could
    find where studies are kept together. If there is no other study, the report is empty. Studies
    are compared by the means of their images' vectors.

    Args:
        splits: The examples of the training split, and those of the split.
        of_images: The vectors of all images of the two.
        count: How many examples.
        frequent: The most frequent tags.
    """
    train, split = splits
    apart = None
    if split is train:
        studies = np.fromiter(map(hash, train.studies), np.int64, len(train))
        apart = studies, studies
    of_train, of_split = map(by_example, of_images, splits)
    neighbours = nearest(of_train, of_split, count, apart)

    def of_neighbours(column: Sequence[list[str]]) -> Stream[list[str]]:
        return Stream(
            count, lambda: (column[row] if row != NONE else [] for row in map(int, neighbours))
        )

    return SplitReports(
        of_neighbours(train.sentences),
        of_neighbours(train.tags).map(lambda tags: _ranked([*tags, *frequent])),
    )


def baseline_scores(
    dataset: PreparedDataset, split_name: str, first: int | None, images_per_study: int = 1
) -> dict[str, Scores]:
    """Scores of the two baselines; the arguments are those of `baselines`.

    Measured is what a sweep can search for.
    """
    split = open_examples(dataset, split_name, images_per_study)
    metrics = [metric for metric in objective_metrics() if metric.module]
    return {
        name: score_split(_predictions(split, written), metrics).scores
        for name, written in baselines(dataset, split_name, first, images_per_study).items()
    }


def _generate_reports(
    model: System, checkpoint: Checkpoint, config: Config, split: Examples
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


def _predictions(split: Examples, written: SplitReports) -> Predictions:
    """A baseline's predictions, for as many of a split's first images as it has, with the truth."""
    count = len(written.tags)
    return Predictions(
        references=Stream(count, lambda: iter(split.references)),
        reports=written.texts,
        sentences=written.sentences,
        tags=Stream(count, lambda: iter(split.tags)),
        predicted_tags=written.tags,
    )


def truth_columns(split: Examples) -> list[str]:
    """The columns of a file of predictions that contain the truth."""
    findings = ["findings"] if any(split.finding_names) else []
    return ["image_id", "study", "reference", "reference_sentences", "tags", *findings]


def truth_rows(split: Examples) -> Iterator[dict[str, Any]]:
    """Their values, image by image."""
    columns = {
        "image_id": split.image_ids,
        "study": split.studies,
        "reference": split.references,
        "reference_sentences": split.sentences,
        "tags": split.tags,
        "findings": split.finding_names,
    }
    return (
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    )


def baseline_columns(written: Iterable[str]) -> list[str]:
    """The columns of a file of predictions for the baselines of these names."""
    return [
        f"{PREFIXES[name]}{column}"
        for name in written
        for column in ("report", "sentences", "predicted_tags")
    ]


def baseline_rows(written: Mapping[str, SplitReports]) -> Iterator[dict[str, Any]]:
    """Their values, image by image."""
    names = baseline_columns(written)
    parts = [part for each in written.values() for part in (each.texts, each.sentences, each.tags)]
    return (dict(zip(names, values, strict=True)) for values in zip(*parts, strict=True))


def _ranked(tags: list[str]) -> list[str]:
    return list(dict.fromkeys(tags))[:RANKED_TAGS]
