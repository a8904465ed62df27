"""Free-running generation over a split, scored at every stop threshold and every M.

A sentence's words do not depend on the stop threshold, so generating the longest reports once
gives the score at all thresholds. M, the number of tags attended to, determines the shape of no
weight, so each further value of it costs one more generation and no training.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from raymed.config import Config
from raymed.data.batches import TokenisedSplit
from raymed.data.studies import Examples
from raymed.generation import (
    Generated,
    Report,
    find_semantic_features,
    generate,
    override_top_tags,
)
from raymed.image_tensors import Images, SingleImages, StudyImages
from raymed.metrics.cider import ciders
from raymed.metrics.scoring import Predictions, score_split
from raymed.metrics.table import objective_metrics, ranking
from raymed.metrics.tags import recall_at
from raymed.model.hierarchical import Hierarchical
from raymed.model.system import System
from raymed.progress import track
from raymed.training.observer import Row
from raymed.training.split_reports import image_batches
from raymed.training.worker import Worker

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Stop thresholds of the curve; the configuration's own is added."""
TOP_TAGS = (1, 2, 3, 5, 10, 20, 30)
"""Values of M that ``tune.free_top_tags`` tries besides the trained one."""
RECALL_TAGS = 5
"""Tags that are kept of each report."""


class Validation(NamedTuple):
    """One epoch's validation.

    Attributes:
        row: Its metrics.
        curve: Rows of ``stop_threshold`` and ``top_tags``, each where the system has it, and
            ``cider``; empty where there is nothing to choose.
        config: The run's configuration, with the stop threshold and the M behind the row's score.
    """

    row: Row
    curve: list[Row]
    config: Config


def validate(
    model: System,
    split: TokenisedSplit,
    config: Config,
    worker: Worker,
    after_batch: Callable[[], None] = lambda: None,
) -> Validation:
    """CIDEr, tag recall and distinct reports of free-running generation, over all workers.

    The score, by which epochs and trials are ranked, is CIDEr; for a system that writes no
    reports, tag recall. With ``tune.free_threshold`` or ``tune.free_top_tags`` it is the score at
    the best stop threshold or M, which the row then names. Ties go to the M nearest to the trained
    one, then to the threshold nearest to 0.5.

    Args:
        model: The system.
        split: The split, of which the first `validation_size` images are used.
        config: The run's configuration.
        worker: This worker; each generates the reports of its share.
        after_batch: Called after every batch of this worker. May raise.
    """
    grid = _Grid.of(model, split, config)
    outputs = _generate(model, split, config, grid, worker, after_batch)
    recall_5 = _recall(outputs.reports[grid.own.top_tags], split)
    if model.writer is None:
        row = {"recall_5": recall_5, "seconds_per_report": outputs.seconds[grid.own.top_tags]}
        reports = [each.report for each in outputs.reports[grid.own.top_tags]]
        row |= _other_objectives(row, split.split, reports, writes=False)
        return Validation({"score": row[ranking(row).key], **row}, [], config)

    texts = {
        point: [each.at(number).text for each in outputs.reports[point.top_tags]]
        for number, point in grid.points()
    }
    references = split.split.references[: validation_size(split, config)]
    cider = dict(zip(texts, ciders(references, list(texts.values())), strict=True))
    best = grid.best(cider, config.tune.free_threshold)
    row = {
        "cider": cider[best],
        "recall_5": recall_5,
        "distinct": float(len(set(texts[best]))),
        "seconds_per_report": outputs.seconds[best.top_tags],
    }
    threshold = grid.thresholds.index(best.threshold)
    reports = [each.at(threshold) for each in outputs.reports[best.top_tags]]
    row |= _other_objectives(row, split.split, reports, writes=True)
    row = {"score": row[ranking(row).key], **row}
    curve = grid.curve(cider)
    if curve:
        row["free_cider"] = max(cider.values())
    if grid.has_thresholds and config.tune.free_threshold:
        row["stop_threshold"] = best.threshold
    if grid.has_top_tags and config.tune.free_top_tags:
        row["top_tags"] = float(best.top_tags)
    chosen = {"generation.stop_threshold": best.threshold, "model.top_tags": best.top_tags}
    return Validation(row, curve, config.override(chosen))


def validation_size(split: TokenisedSplit, config: Config) -> int:
    """How many examples of a split a run is validated on: the first ``data.validation_images``."""
    return min(config.data.validation_images or len(split), len(split))


def why_cider_is_zero(images: int, split: str) -> str:
    """What to report of a split whose references are all the same."""
    return (
        f"CIDEr cannot be above 0 on the {images} image(s) of split {split}, whatever the model "
        "generates: words that occur in every reference have no weight, and these references have "
        "no others"
    )


def _other_objectives(row: Row, split: Examples, reports: list[Report], writes: bool) -> Row:
    """The metrics that a sweep can search for and that the row lacks; of the tags, five are ranked.

    Args:
        row: The metrics measured so far.
        split: The split whose first images the reports are of.
        reports: The reports.
        writes: Whether the system writes reports, rather than tags alone.
    """
    metrics = [
        metric
        for metric in objective_metrics()
        if metric.module and metric.key not in row and (writes or metric.of != "reports")
    ]
    count = len(reports)
    predictions = Predictions(
        references=split.references[:count],
        reports=[report.text for report in reports] if writes else None,
        sentences=[report.sentences for report in reports] if writes else None,
        tags=split.tags[:count],
        predicted_tags=[[tag for tag, _ in report.tags] for report in reports],
    )
    values = score_split(predictions, metrics).scores
    return {key: math.nan if value is None else float(value) for key, value in values.items()}


class _Point(NamedTuple):
    """An M and a stop threshold; either has no effect on a system that lacks it."""

    top_tags: int
    threshold: float


@dataclass(frozen=True)
class _Grid:
    """The values of M and the stop thresholds at which reports are scored.

    Attributes:
        own: The run's own.
        top_tags: Values of M, ascending.
        thresholds: Stop thresholds, ascending.
        has_thresholds: Whether the system has a stop threshold.
        has_top_tags: Whether the system attends to tags.
    """

    own: _Point
    top_tags: list[int]
    thresholds: list[float]
    has_thresholds: bool
    has_top_tags: bool

    @classmethod
    def of(cls, model: System, split: TokenisedSplit, config: Config) -> "_Grid":
        own = _Point(config.model.top_tags, config.generation.stop_threshold)
        has_thresholds = isinstance(model, Hierarchical)
        has_top_tags = find_semantic_features(model) is not None
        top_tags, thresholds = {own.top_tags}, {own.threshold}
        if has_thresholds:
            thresholds |= set(THRESHOLDS)
        if has_top_tags and config.tune.free_top_tags:
            top_tags |= {top for top in TOP_TAGS if top <= split.tag_count}
        return cls(own, sorted(top_tags), sorted(thresholds), has_thresholds, has_top_tags)

    def points(self) -> Iterator[tuple[int, _Point]]:
        """Every combination, with the number of its threshold."""
        for top in self.top_tags:
            for number, threshold in enumerate(self.thresholds):
                yield number, _Point(top, threshold)

    def best(self, cider: dict[_Point, float], free_threshold: bool) -> _Point:
        """The point of the highest CIDEr, at the run's own threshold unless that is free."""
        return min(
            (point for point in cider if free_threshold or point.threshold == self.own.threshold),
            key=lambda point: (
                -cider[point],
                abs(point.top_tags - self.own.top_tags),
                abs(point.threshold - 0.5),
            ),
        )

    def curve(self, cider: dict[_Point, float]) -> list[Row]:
        """CIDEr at each point, naming what the system has; empty if there is but one point."""
        if not self.has_thresholds and len(self.top_tags) == 1:
            return []
        rows = []
        for point, score in cider.items():
            row: Row = {"stop_threshold": point.threshold} if self.has_thresholds else {}
            row |= {"top_tags": float(point.top_tags)} if self.has_top_tags else {}
            rows.append(row | {"cider": score})
        return rows


class _LongestReport(NamedTuple):
    """An image's report at the highest stop threshold.

    Attributes:
        row: The image's row in the split.
        report: The report, with its `RECALL_TAGS` likeliest tags.
        lengths: How many of its sentences are left at each threshold of the grid.
    """

    row: int
    report: Report
    lengths: tuple[int, ...]

    def at(self, threshold: int) -> Report:
        """The report at the grid's threshold of that number."""
        return replace(self.report, sentences=self.report.sentences[: self.lengths[threshold]])


class _Outputs(NamedTuple):
    """What was generated, by M.

    Attributes:
        reports: The reports of all images, in the split's order.
        seconds: The slowest worker's seconds per report.
    """

    reports: dict[int, list[_LongestReport]]
    seconds: dict[int, float]


def _generate(
    model: System,
    split: TokenisedSplit,
    config: Config,
    grid: _Grid,
    worker: Worker,
    after_batch: Callable[[], None],
) -> _Outputs:
    """Generate the longest reports at every M: each worker those of its share of the images."""
    rows = np.arange(validation_size(split, config))[worker.rank :: worker.world]
    settings = config.generation.model_copy(update={"stop_threshold": grid.thresholds[-1]})
    reports: dict[int, list[_LongestReport]] = {top: [] for top in grid.top_tags}
    seconds = dict.fromkeys(grid.top_tags, 0.0)
    batch_size = config.training.batch_size
    batches = image_batches(split, rows, batch_size, worker.device)
    model.eval()
    for batch_rows, images in track(batches, "validating, batches", -(-len(rows) // batch_size)):
        started = time.perf_counter()
        if len(grid.top_tags) > 1:
            images = _encoded(model, images)
        encoding = time.perf_counter() - started
        for top in grid.top_tags:
            started = time.perf_counter()
            with override_top_tags(model, top):
                generated = generate(model, images, settings)
            reports[top] += _longest_reports(generated, batch_rows, split, grid)
            seconds[top] += encoding + time.perf_counter() - started
        after_batch()
    return _gathered(
        _Outputs(reports, {top: total / max(1, len(rows)) for top, total in seconds.items()}),
        worker,
    )


def _encoded(model: System, images: Images) -> Images:
    """The encoder's features of a batch, so that it is encoded once for all values of M."""
    if isinstance(images, StudyImages):
        return images.with_images(_encoded_images(model, images.images))
    return _encoded_images(model, images)


def _encoded_images(model: System, images: SingleImages) -> SingleImages:
    if not isinstance(images, Tensor):
        return images
    assert model.encoder is not None
    with torch.inference_mode(), model.precision_context():
        features: SingleImages = model.encoder(images)
    if model.device.type == "cuda":
        # Or the first generation's time would include the encoder's.
        torch.cuda.synchronize()
    return features


def _longest_reports(
    generated: Generated, rows: list[int], split: TokenisedSplit, grid: _Grid
) -> Iterator[_LongestReport]:
    reports = generated.reports(split.vocabulary)
    lengths = zip(*map(generated.lengths, grid.thresholds), strict=True)
    for row, report, of_report in zip(rows, reports, lengths, strict=True):
        yield _LongestReport(row, replace(report, tags=report.tags[:RECALL_TAGS]), of_report)


def _gathered(share: _Outputs, worker: Worker) -> _Outputs:
    """All workers' shares as one, on every worker."""
    shares = [share]
    if worker.world > 1:
        gathered: list[Any] = [None] * worker.world
        dist.all_gather_object(gathered, share)
        shares = gathered
    return _Outputs(
        {
            top: sorted(chain(*(each.reports[top] for each in shares)), key=lambda one: one.row)
            for top in share.reports
        },
        {top: max(each.seconds[top] for each in shares) for top in share.seconds},
    )


def _recall(reports: list[_LongestReport], split: TokenisedSplit) -> float:
    """Tag recall@5 over the images of some reports."""
    tag_ids = split.vocabulary.tag_ids
    ranked = np.array([[tag_ids[tag] for tag, _ in each.report.tags] for each in reports])
    return recall_at(RECALL_TAGS, ranked, [set(ids) for ids in split.tag_ids[: len(reports)]])
