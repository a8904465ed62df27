"""Free-running generation over a split, and what it scores at every stop threshold and M.

A sentence's words do not depend on the stop threshold, so one generation of the longest reports
gives the score at all thresholds. M, the number of tags attended to, shapes no weight, so other
values of it cost a generation each and no training.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from raymed.config import Config
from raymed.data.batches import Images, TokenisedSplit, on_device
from raymed.data.vocabulary import Vocabulary
from raymed.generation import (
    Report,
    add_attention,
    find_semantic_features,
    generate,
    override_top_tags,
)
from raymed.metrics.captions import ciders
from raymed.metrics.tags import recall_at
from raymed.model.hierarchical import Hierarchical
from raymed.model.system import System
from raymed.progress import track
from raymed.training.log import Sample
from raymed.training.observer import Row
from raymed.training.worker import Worker

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Stop thresholds of the curve; the configuration's own is added."""
TOP_TAGS = (1, 2, 3, 5, 10, 20, 30)
"""Values of M that ``tune.free_top_tags`` tries beside the trained one."""
SAMPLES = 3
"""Studies whose reports are shown, the first ones of the validation split."""


class Validation(NamedTuple):
    """One epoch's validation.

    Attributes:
        row: its metrics.
        curve: rows of ``stop_threshold`` and ``top_tags``, each where the system has it, and
            ``cider``; empty where there is nothing to choose.
        config: the run's, with the stop threshold and the M of the row's score.
    """

    row: Row
    curve: list[Row]
    config: Config


class _Variant(NamedTuple):
    """M and a stop threshold; of no effect where the system has not the one or the other."""

    top_tags: int
    threshold: float


class _Written(NamedTuple):
    """What one image got: its row, its longest report, and that report's length at each threshold.

    Of the report's tags there are five.
    """

    row: int
    report: Report
    lengths: tuple[int, ...]


def validate(
    model: System,
    split: TokenisedSplit,
    vocabulary: Vocabulary,
    config: Config,
    worker: Worker,
    during: Callable[[], None] = lambda: None,
) -> Validation:
    """CIDEr, tag recall and distinct reports of free-running generation, over all workers.

    The score, by which epochs and trials are ranked, is the CIDEr; for a system that writes no
    report, the recall. With ``tune.free_threshold`` or ``tune.free_top_tags`` it is that of the
    best stop threshold or M, which the row then names; of equals, of the M nearest to the trained
    one and of the threshold nearest to 0.5. ``during`` is called after every batch.
    """
    count = min(config.data.validation_images or len(split), len(split))
    own = _Variant(config.model.top_tags, config.generation.stop_threshold)
    plans_sentences = isinstance(model, Hierarchical)
    attends_to_tags = find_semantic_features(model) is not None
    thresholds, tops = {own.threshold}, {own.top_tags}
    if plans_sentences:
        thresholds |= set(THRESHOLDS)
    if attends_to_tags and config.tune.free_top_tags:
        tops |= {top for top in TOP_TAGS if top <= len(vocabulary.tags)}

    written, seconds = _write_all(
        model, split, count, vocabulary, config, sorted(tops), sorted(thresholds), worker, during
    )
    texts = {
        _Variant(top, threshold): [
            replace(one.report, sentences=one.report.sentences[: one.lengths[number]]).text
            for one in written[top]
        ]
        for top in sorted(tops)
        for number, threshold in enumerate(sorted(thresholds))
    }
    ranked = np.array(
        [[vocabulary.tag_ids[tag] for tag, _ in one.report.tags] for one in written[own.top_tags]]
    )
    recall_5 = recall_at(5, ranked, [set(ids) for ids in split.tag_ids[:count]])
    if model.writer is None:
        seconds_per_report = seconds[own.top_tags]
        return Validation(
            {"score": recall_5, "recall_5": recall_5, "seconds_per_report": seconds_per_report},
            curve=[],
            config=config,
        )

    scored = ciders(split.split.references[:count], list(texts.values()))
    cider = dict(zip(texts, scored, strict=True))
    chosen = min(
        (one for one in texts if config.tune.free_threshold or one.threshold == own.threshold),
        key=lambda one: (-cider[one], abs(one.top_tags - own.top_tags), abs(one.threshold - 0.5)),
    )
    row: Row = {
        "score": cider[chosen],
        "cider": cider[chosen],
        "recall_5": recall_5,
        "distinct": float(len(set(texts[chosen]))),
        "seconds_per_report": seconds[chosen.top_tags],
    }
    curve: list[Row] = []
    if plans_sentences or len(tops) > 1:
        row["free_cider"] = max(scored)
        for one, score in cider.items():
            point: Row = {"stop_threshold": one.threshold} if plans_sentences else {}
            point |= {"top_tags": float(one.top_tags)} if attends_to_tags else {}
            curve.append(point | {"cider": score})
    if plans_sentences and config.tune.free_threshold:
        row["stop_threshold"] = chosen.threshold
    if attends_to_tags and config.tune.free_top_tags:
        row["top_tags"] = float(chosen.top_tags)
    return Validation(
        row,
        curve,
        config.override(
            {"generation.stop_threshold": chosen.threshold, "model.top_tags": chosen.top_tags}
        ),
    )


def why_cider_is_zero(images: int, split: str) -> str:
    """Why the CIDEr is 0, of a split whose references are all the same."""
    return (
        f"CIDEr cannot be above 0 on the {images} image(s) of split {split}, whatever is written: "
        "words that all of its reports have weigh nothing, and these reports have no others"
    )


def write_reports(
    model: System,
    split: TokenisedSplit,
    rows: np.ndarray,
    vocabulary: Vocabulary,
    config: Config,
    worker: Worker,
) -> Iterator[tuple[int, Report]]:
    """Generate the report of each row of a split, batch by batch, as (row, report)."""
    model.eval()
    for chunk, images in _batches(split, rows, config, worker):
        generated = generate(model, images, config.generation)
        yield from zip(chunk, generated.reports(vocabulary), strict=True)


def sample_reports(
    model: System, split: TokenisedSplit, vocabulary: Vocabulary, config: Config, worker: Worker
) -> list[Sample]:
    """The reports of the first few images of a split, to be shown beside the ground truth."""
    model.eval()
    samples = []
    for chunk, images in _batches(split, np.arange(min(SAMPLES, len(split))), config, worker):
        with override_top_tags(model, config.model.top_tags):
            generated = add_attention(model, generate(model, images, config.generation))
        alpha = generated.reading.alpha
        reports = generated.reports(vocabulary)
        for number, (row, report) in enumerate(zip(chunk, reports, strict=True)):
            sample = Sample(
                name=split.split.image_ids[row],
                image=split.split.pixels(np.array([row]))[0],
                report=report,
                alpha=None if alpha is None else alpha[number].float().cpu().numpy(),
                truth=split.split.sentences[row],
                tags=split.split.tags[row],
            )
            samples.append(sample)
    return samples


def _write_all(
    model: System,
    split: TokenisedSplit,
    count: int,
    vocabulary: Vocabulary,
    config: Config,
    tops: list[int],
    thresholds: list[float],
    worker: Worker,
    during: Callable[[], None],
) -> tuple[dict[int, list[_Written]], dict[int, float]]:
    """For each M, the first ``count`` images by all workers, and the slowest's seconds per report.

    Thresholds ascend. Images are encoded once for all M.
    """
    rows = np.arange(count)[worker.rank :: worker.world]
    longest = config.generation.model_copy(update={"stop_threshold": thresholds[-1]})
    share: dict[int, list[_Written]] = {top: [] for top in tops}
    seconds = dict.fromkeys(tops, 0.0)
    model.eval()
    batches = _batches(split, rows, config, worker)
    count_of_batches = -(-len(rows) // config.training.batch_size)
    for chunk, images in track(batches, "validating, batches", count_of_batches):
        began = time.perf_counter()
        if isinstance(images, Tensor) and len(tops) > 1:
            assert model.encoder is not None
            with torch.inference_mode(), model.precision_context():
                images = model.encoder(images)
            if worker.device.type == "cuda":
                torch.cuda.synchronize()
        encoding = time.perf_counter() - began
        for top in tops:
            began = time.perf_counter()
            with override_top_tags(model, top):
                generated = generate(model, images, longest)
            lengths = zip(*map(generated.lengths, thresholds), strict=True)
            for row, report, at in zip(chunk, generated.reports(vocabulary), lengths, strict=True):
                share[top].append(_Written(row, replace(report, tags=report.tags[:5]), at))
            seconds[top] += encoding + time.perf_counter() - began
        during()
    shares = [(share, {top: seconds[top] / max(1, len(rows)) for top in tops})]
    if worker.world > 1:
        gathered: list[Any] = [None] * worker.world
        dist.all_gather_object(gathered, shares[0])
        shares = gathered
    return (
        {top: _in_order(each[top] for each, _ in shares) for top in tops},
        {top: max(each[top] for _, each in shares) for top in tops},
    )


def _batches(
    split: TokenisedSplit, rows: np.ndarray, config: Config, worker: Worker
) -> Iterator[tuple[list[int], Images]]:
    """Some rows of a split, batch by batch: their numbers and images."""
    for start in range(0, len(rows), config.training.batch_size):
        chunk = rows[start : start + config.training.batch_size]
        yield chunk.tolist(), on_device(split.images(chunk), worker.device)


def _in_order(shares: Iterable[list[_Written]]) -> list[_Written]:
    return sorted(chain.from_iterable(shares), key=lambda one: one.row)
