"""From a checkpoint and a split to predictions and scores, beside the two baselines.

Decoding is free-running, references are the full preprocessed reports, and a whole split is
scored at once. Predictions are written as they come, and scored from what was written, so that
memory holds those of a few hundred images at a time.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymed.config import Config
from raymed.data.batches import TokenisedSplit
from raymed.data.dataset import PreparedDataset, Split
from raymed.data.mapped import Column
from raymed.errors import UsageError
from raymed.generation import Report
from raymed.metrics.baselines import NONE, best_constant, nearest
from raymed.metrics.captions import caption_scores, cider
from raymed.metrics.ngrams import CHUNK, chunks, distinct
from raymed.metrics.normality import normality_share
from raymed.metrics.tags import recall_at
from raymed.progress import tracked
from raymed.provenance import Record, made_from, refuse_to_overwrite, with_record
from raymed.scores import Evaluation, Scores
from raymed.storage import AnyPath, atomic_write_text, local_copy, reason, user_output
from raymed.training.checkpoint import Checkpoint
from raymed.training.trained_on import overlap
from raymed.training.validation import write_reports
from raymed.training.worker import Worker, local_device

RANKED_TAGS = 20
PREDICTIONS_FILE = "predictions.parquet"
SCORES_FILE = "scores.json"


T = TypeVar("T", covariant=True)
Other = TypeVar("Other")


class Stream(Generic[T]):
    """As many entries as a split has images, made anew each time they are gone through."""

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
class Written:
    """What one way of writing reports gave for every image of a split.

    Attributes:
        sentences: of each image's report; None of a system that writes none.
        tags: of each image, the likeliest first; 20 of them, or the whole vocabulary if smaller.
    """

    sentences: Stream[list[str]] | None
    tags: Stream[list[str]]

    @property
    def texts(self) -> Stream[str]:
        assert self.sentences is not None
        return self.sentences.map(lambda report: " ".join(filter(None, report)))


class Baseline(NamedTuple):
    """A baseline's scores on the images that a run is validated on."""

    cider: float
    recall_5: float


def evaluate(checkpoint: Checkpoint, config: Config, split_name: str, out: AnyPath) -> Evaluation:
    """Write the reports of a split, score them, and leave predictions and scores in ``out``.

    Args:
        checkpoint: the model.
        config: the checkpoint's, with what is to differ (data.path, generation).
        split_name: ``train``, ``val`` or ``test``.
        out: folder for ``predictions.parquet`` and ``scores.json``.

    Raises:
        UsageError: the dataset cannot be opened, its images have another size, or ``out`` holds
            results that were made from something else.
    """
    dataset = PreparedDataset.open(config.data.path)
    if dataset.info.image_size != checkpoint.image_size:
        raise UsageError(
            f"{config.data.path}: its images have {dataset.info.image_size} pixels, and "
            f"{checkpoint.path} was trained on {checkpoint.image_size}: prepare it again with "
            f"image_size={checkpoint.image_size}"
        )
    record = made_from(checkpoint, config, dataset, split_name)
    refuse_to_overwrite(out, (PREDICTIONS_FILE, SCORES_FILE), record)
    split = dataset.split(split_name)
    trained_on = overlap(checkpoint, dataset, split_name)
    without_model = baselines(dataset, split_name, None)
    writes, reports = _by_model(checkpoint, config, split)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({reason(error)})") from error
    _write_predictions(out / PREDICTIONS_FILE, split, writes, reports, without_model, record)
    rows, meteor_missing = {}, None
    with local_copy(out / PREDICTIONS_FILE) as predictions:
        sentences = Stream(len(split), lambda: _column(predictions, "sentences"))
        tags = Stream(len(split), lambda: _column(predictions, "predicted_tags"))
        system = Written(sentences if writes else None, tags)
        for name, written in {config.model.system: system, **without_model}.items():
            # One lexicon for all: METEOR's table of paraphrases is made once per dataset.
            lexicon = chain(dataset.words, split.references)
            rows[name], meteor_missing = _scores(split, written, lexicon)
    evaluation = Evaluation(
        split=split_name,
        images=len(split),
        rows=rows,
        truth_normality=normality_share(chain.from_iterable(split.sentences)),
        truth_distinct=distinct(split.references),
        meteor_missing=meteor_missing,
        trained_on=trained_on,
        made_from=record,
    )
    try:
        atomic_write_text(out / SCORES_FILE, json.dumps(_jsonable(asdict(evaluation)), indent=1))
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({reason(error)})") from error
    return evaluation


def baselines(dataset: PreparedDataset, split_name: str, images: int | None) -> dict[str, Written]:
    """What needs no model, of the first ``images`` images of a split (None: of all).

    One fixed report for all of them, and the nearest training image's. The constant report, chosen
    on the training split, comes with the most frequent tags; the nearest image's tags come before
    those. For a training image, images of its own study do not count: they would be its report
    itself, which no image of another split can find where studies are kept together. Where there is
    no other study, no report is written.
    """
    train, split = dataset.split("train"), dataset.split(split_name)
    count = len(split) if images is None else min(images, len(split))
    constant = best_constant(train.references)
    row = next(row for row, text in enumerate(train.references) if text == constant)
    fixed, frequent = train.sentences[row], dataset.tags[:RANKED_TAGS]
    apart = None
    if split_name == "train":
        studies = np.fromiter(map(hash, train.studies), np.int64, len(train))
        apart = studies, studies
    neighbours = nearest(train, split, count, apart)

    def of_neighbours(column: Column[list[str]]) -> Stream[list[str]]:
        return Stream(
            count, lambda: (column[row] if row != NONE else [] for row in map(int, neighbours))
        )

    return {
        "constant report": Written(
            Stream(count, lambda: repeat(fixed)), Stream(count, lambda: repeat(frequent))
        ),
        "nearest image": Written(
            of_neighbours(train.sentences),
            of_neighbours(train.tags).map(lambda tags: _ranked([*tags, *frequent])),
        ),
    }


def baseline_scores(
    dataset: PreparedDataset, split_name: str, images: int | None
) -> dict[str, Baseline]:
    """Scores of the two baselines on the first ``images`` images of a split (None: on all)."""
    split = dataset.split(split_name)
    scores = {}
    for name, written in baselines(dataset, split_name, images).items():
        references = Stream(len(written.tags), lambda: iter(split.references))
        recall_5, *_ = _recalls(islice(split.tags, len(written.tags)), written.tags)
        scores[name] = Baseline(cider(references, written.texts), recall_5)
    return scores


def _by_model(
    checkpoint: Checkpoint, config: Config, split: Split
) -> tuple[bool, Iterator[Report]]:
    """Whether the model writes reports, and what it gives for each image, as it comes.

    Of a report's tags, those that are ranked are left.
    """
    device = local_device()
    model = checkpoint.build_model(device)
    limits = config.generation.max_sentences, config.generation.max_words
    tokenised = TokenisedSplit(split, checkpoint.vocabulary, *limits)
    rows = np.arange(len(split))
    written = tracked(
        write_reports(model, tokenised, rows, checkpoint.vocabulary, config, Worker(device)),
        "writing reports",
        len(rows),
    )
    # With its probability, every tag of a vocabulary of 1,000 takes 80 KB.
    return model.writer is not None, (
        replace(report, tags=report.tags[:RANKED_TAGS]) for _, report in written
    )


def _scores(split: Split, written: Written, lexicon: Iterable[str]) -> tuple[Scores, str | None]:
    recalls = _recalls(split.tags, written.tags)
    if written.sentences is None:
        return Scores(*recalls), None
    captions = caption_scores(split.references, written.texts, lexicon)
    scores = Scores(
        *recalls,
        bleu_1=captions.bleu_1,
        bleu_2=captions.bleu_2,
        bleu_3=captions.bleu_3,
        bleu_4=captions.bleu_4,
        meteor=captions.meteor,
        rouge_l=captions.rouge_l,
        cider=captions.cider,
        normality=normality_share(chain.from_iterable(written.sentences)),
        distinct=captions.distinct,
    )
    return scores, captions.meteor_missing


def _recalls(truth: Iterable[list[str]], ranked: Iterable[list[str]]) -> tuple[float, float, float]:
    """Tag recall@5, @10 and @20."""
    sums, images = np.zeros(3), 0
    for some in chunks(zip(truth, ranked, strict=True)):
        # Images without tags are left out. Tags by number, so that one outside the ranking's
        # vocabulary still counts as missed.
        numbers: dict[str, int] = {}
        ids = np.array([[numbers.setdefault(t, len(numbers)) for t in tags] for _, tags in some])
        true_ids = [{numbers.setdefault(t, len(numbers)) for t in tags} for tags, _ in some]
        tagged = sum(map(bool, true_ids))
        if tagged:
            sums += [recall_at(k, ids, true_ids) * tagged for k in (5, 10, 20)]
        images += tagged
    at_5, at_10, at_20 = sums / images if images else [math.nan] * 3
    return float(at_5), float(at_10), float(at_20)


def _ranked(tags: list[str]) -> list[str]:
    return list(dict.fromkeys(tags))[:RANKED_TAGS]


def _write_predictions(
    path: AnyPath,
    split: Split,
    writes: bool,
    reports: Iterator[Report],
    without_model: dict[str, Written],
    record: Record,
) -> None:
    """Write predictions in groups of rows as they come."""
    text, texts = pa.string(), pa.list_(pa.string())
    own = {"report": text, "sentences": texts} if writes else {}
    names = {"image_id": text, "study": text, "reference": text, **own}
    names |= {"tags": texts, "predicted_tags": texts}
    names |= {"constant_report": text, "nearest_report": text}
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
            image_ids, studies, references, tags, by_model, constant, neighbour = zip(
                *some, strict=True
            )
            columns = {
                "image_id": image_ids,
                "study": studies,
                "reference": references,
                "report": [report.text for report in by_model],
                "sentences": [report.sentences for report in by_model],
                "tags": tags,
                "predicted_tags": [[tag for tag, _ in report.tags] for report in by_model],
                "constant_report": constant,
                "nearest_report": neighbour,
            }
            writer.write_table(pa.table({name: columns[name] for name in names}, schema))


def _column(predictions: Path, name: str) -> Iterator[Any]:
    # By default a batch would be 65,536 rows long, all of them Python lists at once.
    with pq.ParquetFile(predictions) as file:
        for batch in file.iter_batches(CHUNK, columns=[name]):
            yield from batch.column(0).to_pylist()


def _jsonable(value: Any) -> Any:
    """JSON has no NaN: what could not be measured is null."""
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
