"""From a checkpoint and a split to predictions and scores, beside the two baselines.

Decoding is free-running, references are the full preprocessed reports, and a whole split is
scored at once.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.box import SIMPLE_HEAD
from rich.progress import track
from rich.table import Table

from raymed.config import Config
from raymed.data.batches import TokenisedSplit
from raymed.data.dataset import PreparedDataset, Split
from raymed.errors import UsageError
from raymed.generation import Report
from raymed.metrics.baselines import best_constant, nearest
from raymed.metrics.captions import caption_scores, cider
from raymed.metrics.normality import normality_share
from raymed.metrics.tags import recall_at
from raymed.storage import Place, output, reason, write_whole
from raymed.training.checkpoint import Checkpoint
from raymed.training.validation import write_reports
from raymed.training.worker import Worker, local_device

RANKED_TAGS = 20
PREDICTIONS_FILE = "predictions.parquet"
SCORES_FILE = "scores.json"


@dataclass(frozen=True)
class Written:
    """What one way of writing reports gave for every image of a split.

    Attributes:
        sentences: of each image's report; None of a system that writes none.
        tags: of each image, the likeliest first; 20 of them, or the whole vocabulary if smaller.
    """

    sentences: list[list[str]] | None
    tags: list[list[str]]

    @property
    def texts(self) -> list[str]:
        reports = self.sentences or []
        return [" ".join(sentence for sentence in report if sentence) for report in reports]


@dataclass(frozen=True)
class Scores:
    """One row of the score table. Shares and scores are from 0 to 1, CIDEr from 0 to 10.

    A system that writes no report has tag recall only.
    """

    recall_5: float
    recall_10: float
    recall_20: float
    bleu_1: float | None = None
    bleu_2: float | None = None
    bleu_3: float | None = None
    bleu_4: float | None = None
    meteor: float | None = None
    rouge_l: float | None = None
    cider: float | None = None
    normality: float | None = None
    distinct: int | None = None


MEASURES = {
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
    "recall_5": "tag recall@5",
    "recall_10": "tag recall@10",
    "recall_20": "tag recall@20",
    "normality": "normality share",
    "distinct": "distinct reports",
}


class Baseline(NamedTuple):
    """A baseline's scores on the images that a run is validated on."""

    cider: float
    recall_5: float


@dataclass(frozen=True)
class Evaluation:
    """Scores of the model and of the baselines on one split.

    Attributes:
        rows: by name: the checkpoint's system, ``constant report`` and ``nearest image``.
        truth_normality: the normality share of the references.
        truth_distinct: how many references differ.
        meteor_missing: why METEOR is absent, if it is.
    """

    split: str
    images: int
    rows: dict[str, Scores]
    truth_normality: float
    truth_distinct: int
    meteor_missing: str | None

    def table(self) -> Table:
        """The scores for the terminal, a measure to a line, with the ground truth's own figures."""
        table = Table(
            title=f"{self.split} split, {self.images} images",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        for head in ("", *self.rows, "ground truth"):
            table.add_column(head, justify="right" if head else "left", no_wrap=True)
        for field, name in MEASURES.items():
            values = [getattr(row, field) for row in self.rows.values()]
            truth = {"normality": self.truth_normality, "distinct": self.truth_distinct}.get(field)
            table.add_row(name, *map(_shown, values), "" if truth is None else _shown(truth))
        return table


def evaluate(checkpoint: Checkpoint, config: Config, split_name: str, out: Place) -> Evaluation:
    """Write the reports of a split, score them, and leave predictions and scores in ``out``.

    Args:
        checkpoint: the model.
        config: the checkpoint's, with what is to differ (data.path, generation).
        split_name: ``train``, ``val`` or ``test``.
        out: folder for ``predictions.parquet`` and ``scores.json``.

    Raises:
        UsageError: the data set cannot be opened, or its images have another size.
    """
    dataset = PreparedDataset.open(config.data.path)
    if dataset.info.image_size != checkpoint.image_size:
        raise UsageError(
            f"{config.data.path}: its images have {dataset.info.image_size} pixels, and "
            f"{checkpoint.path} was trained on {checkpoint.image_size}: prepare it again with "
            f"image_size={checkpoint.image_size}"
        )
    split = dataset.split(split_name)
    written = {
        config.model.system: _by_model(checkpoint, config, split),
        **baselines(dataset, split),
    }
    # One lexicon for all rows: METEOR's table of paraphrases is then made once per data set.
    lexicon = [*dataset.words, *split.references]
    meteor_missing = None
    rows = {}
    for name, reports in written.items():
        rows[name], meteor_missing = _scores(split, reports, lexicon)
    evaluation = Evaluation(
        split=split_name,
        images=len(split),
        rows=rows,
        truth_normality=normality_share(s for report in split.sentences for s in report),
        truth_distinct=len(set(split.references)),
        meteor_missing=meteor_missing,
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        _write_predictions(out / PREDICTIONS_FILE, split, written)
        write_whole(out / SCORES_FILE, json.dumps(_jsonable(asdict(evaluation)), indent=1))
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({reason(error)})") from error
    return evaluation


def baselines(dataset: PreparedDataset, split: Split) -> dict[str, Written]:
    """What needs no model: one fixed report for all images, and the nearest training image's.

    The constant report, chosen on the training split, comes with the most frequent tags; the
    nearest image's tags come before those.
    """
    train = dataset.split("train")
    constant = best_constant(train.references)
    fixed = train.sentences[train.references.index(constant)]
    frequent = dataset.tags[:RANKED_TAGS]
    every = np.arange(len(train))
    neighbours = nearest(train.pixels(every), split.pixels(np.arange(len(split))))
    return {
        "constant report": Written([fixed] * len(split), [frequent] * len(split)),
        "nearest image": Written(
            [train.sentences[row] for row in neighbours],
            [_ranked([*train.tags[row], *frequent]) for row in neighbours],
        ),
    }


def baseline_scores(
    dataset: PreparedDataset, split_name: str, images: int | None
) -> dict[str, Baseline]:
    """Scores of the two baselines on the first ``images`` images of a split (None: on all)."""
    split = dataset.split(split_name)
    references = split.references[:images]
    return {
        name: Baseline(
            cider(references, written.texts[:images]),
            _recalls(split.tags[:images], written.tags[:images])[0],
        )
        for name, written in baselines(dataset, split).items()
    }


def _by_model(checkpoint: Checkpoint, config: Config, split: Split) -> Written:
    device = local_device()
    model = checkpoint.build_model(device)
    limits = config.generation.max_sentences, config.generation.max_words
    tokenised = TokenisedSplit(split, checkpoint.vocabulary, *limits)
    rows = np.arange(len(split))
    reports: list[Report] = [
        report
        for _, report in track(
            write_reports(model, tokenised, rows, checkpoint.vocabulary, config, Worker(device)),
            total=len(rows),
            description="writing reports",
            transient=True,
        )
    ]
    return Written(
        [report.sentences for report in reports] if model.writer else None,
        [[tag for tag, _ in report.tags[:RANKED_TAGS]] for report in reports],
    )


def _scores(split: Split, written: Written, lexicon: Sequence[str]) -> tuple[Scores, str | None]:
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
        normality=normality_share(s for report in written.sentences for s in report),
        distinct=captions.distinct,
    )
    return scores, captions.meteor_missing


def _recalls(
    truth: Sequence[Sequence[str]], ranked: Sequence[Sequence[str]]
) -> tuple[float, float, float]:
    """Tag recall@5, @10 and @20."""
    # Tags by number, so that one outside the ranking's vocabulary still counts as missed.
    numbers: dict[str, int] = {}
    ids = np.array([[numbers.setdefault(tag, len(numbers)) for tag in tags] for tags in ranked])
    true_ids = [{numbers.setdefault(tag, len(numbers)) for tag in tags} for tags in truth]
    return recall_at(5, ids, true_ids), recall_at(10, ids, true_ids), recall_at(20, ids, true_ids)


def _ranked(tags: Sequence[str]) -> list[str]:
    unique = list(dict.fromkeys(tags))
    return unique[: min(RANKED_TAGS, len(unique))]


def _write_predictions(path: Place, split: Split, written: dict[str, Written]) -> None:
    system, constant, neighbour = written.values()
    table = pa.table(
        {
            "image_id": split.image_ids,
            "study": split.studies,
            "reference": split.references,
            **(
                {"report": system.texts, "sentences": system.sentences}
                if system.sentences is not None
                else {}
            ),
            "tags": pa.array(split.tags, pa.list_(pa.string())),
            "predicted_tags": system.tags,
            "constant_report": constant.texts,
            "nearest_report": neighbour.texts,
        }
    )
    with output(path) as partial:
        pq.write_table(table, partial)


def _shown(value: float | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _jsonable(value: Any) -> Any:
    """JSON has no NaN: what could not be measured is null."""
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
