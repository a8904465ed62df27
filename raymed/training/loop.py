"""The training loop: plain torch, on one process or on many with DDP; no Ray.

Read `train` from top to bottom. Everything random depends on the seed, the epoch and an image's
place in it, so a run that is taken up again ends where an uninterrupted one ends.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raymed.config import Config
from raymed.data.batches import TokenisedSplit, steps_per_epoch
from raymed.data.dataset import PreparedDataset
from raymed.data.vocabulary import Vocabulary
from raymed.errors import UsageError
from raymed.generation import Report, generate
from raymed.metrics.captions import cider
from raymed.metrics.tags import recall_at
from raymed.model.encoder import check_weights
from raymed.model.system import System
from raymed.model.systems import build_system
from raymed.sections import TrainingConfig
from raymed.training.checkpoint import Checkpoint, Row, checkpoints_of, epoch_name, latest
from raymed.training.log import RunLog
from raymed.training.loss import Terms, terms


class TrainingStopped(UsageError):
    """Training cannot go on; raised on all workers at once, the checkpoints staying good."""


@dataclass(frozen=True)
class Worker:
    """This process's place among the data-parallel workers."""

    device: torch.device
    rank: int = 0
    world: int = 1


def train(config: Config, folder: Path, worker: Worker, report: Callable[[Row], None]) -> None:
    """Train one run, from its last checkpoint if it has one.

    Args:
        config: of the run.
        folder: of the run; takes checkpoints, metrics.csv and TensorBoard's files.
        worker: rank, world size and device; with a world above 1, torch.distributed is ready.
        report: called on every worker after each epoch with the same row of metrics.

    Raises:
        UsageError: the data set, the weights or a checkpoint cannot be used.
        TrainingStopped: a gradient is no longer finite, naming epoch, step and the terms of the
            loss; or the checkpoint cannot be written.
    """
    dataset = check(config)
    vocabulary = Vocabulary.most_frequent(dataset.words, dataset.tags, config.data.vocabulary)
    limits = config.generation.max_sentences, config.generation.max_words
    training = TokenisedSplit(dataset.split("train"), vocabulary, *limits)
    validation = TokenisedSplit(dataset.split("val"), vocabulary, *limits)

    torch.manual_seed(config.training.seed)
    last = latest(folder)
    model = build_system(
        config.model, len(vocabulary.tags), len(vocabulary), pretrained=last is None
    ).to(worker.device)
    optimizer = build_optimizer(model, config.training)
    history: list[Row] = []
    if last is not None:
        checkpoint = Checkpoint.open(last)
        checkpoint.restore(model, optimizer)
        history = checkpoint.history
    parallel = DistributedDataParallel(model) if worker.world > 1 else model
    steps = steps_per_epoch(len(training), config.training.batch_size)
    log = RunLog(folder, steps, history) if worker.rank == 0 else None

    for epoch in range(len(history) + 1, config.training.epochs + 1):
        began = time.perf_counter()
        model.train()
        sums = torch.zeros(len(fields(Terms)) + 1, device=worker.device, dtype=torch.float64)
        batches = training.batches(
            config.training.batch_size, config.training.seed, epoch, worker.rank, worker.world
        )
        for step, batch in enumerate(batches, start=1):
            set_rates(optimizer, config.training, done=(epoch - 1) * steps + step - 1, steps=steps)
            batch = batch.to(worker.device)
            with autocast(config.training, worker.device):
                outputs = parallel(batch.images, batch.reports, batch.seeds)
                losses = terms(outputs, batch)
            total = losses.total(config.loss)
            # The weights of all shares sum to 1, and DDP takes the mean over the workers.
            loss = (total * batch.weights).sum() * worker.world
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), config.training.clip_norm)
            if not math.isfinite(norm):
                raise _diverged(epoch, step, losses)
            optimizer.step()
            sums += _summed(losses, total, counted=batch.weights > 0)
            if log:
                log.progress(epoch, step, float(loss.detach()))
        seconds = time.perf_counter() - began

        row = _epoch_row(epoch, sums / len(training), worker)
        row |= validate(model, validation, vocabulary, config, worker)
        row["best_score"] = max(r["score"] for r in [*history, row])
        row["learning_rate"] = optimizer.param_groups[0]["lr"]
        row["images_per_second"] = len(training) / seconds
        row["seconds"] = time.perf_counter() - began
        history.append(row)
        checkpoint = Checkpoint(
            config=config,
            vocabulary=vocabulary,
            image_size=dataset.info.image_size,
            content_hash=dataset.info.content_hash,
            history=history,
            path=checkpoints_of(folder) / epoch_name(epoch),
        )
        save(checkpoint, model, optimizer, log, worker)
        report(row)


def check(config: Config) -> PreparedDataset:
    """Open the data set and see that the configuration fits it.

    Raises:
        UsageError: naming the key that does not fit.
    """
    check_weights(config.model.encoder, config.model.encoder_weights)
    dataset = PreparedDataset.open(config.data.path)
    tags = len(dataset.tags)
    if config.model.top_tags > tags:
        raise UsageError(
            f"model.top_tags: {config.model.top_tags} tags are to be attended to, and "
            f"{config.data.path} has {tags}: set it to {tags} at most"
        )
    smallest = 8 if config.model.encoder == "small" else 32
    if dataset.info.image_size < smallest:
        raise UsageError(
            f"model.encoder: {config.model.encoder} needs images of at least {smallest} pixels, "
            f"and those of {config.data.path} have {dataset.info.image_size}: prepare it again "
            "with a larger image_size, or take another encoder"
        )
    return dataset


def validate(
    model: System,
    split: TokenisedSplit,
    vocabulary: Vocabulary,
    config: Config,
    worker: Worker,
) -> Row:
    """CIDEr, tag recall and distinct reports of free-running generation, over all workers.

    The score, by which epochs and trials are ranked, is the CIDEr; for a system that writes no
    report, the recall.
    """
    count = min(config.data.validation_images or len(split), len(split))
    rows = np.arange(count)[worker.rank :: worker.world]
    written = list(write_reports(model, split, rows, vocabulary, config, worker))
    shares: list[list[tuple[int, Report]]] = [written]
    if worker.world > 1:
        shares = [[] for _ in range(worker.world)]
        dist.all_gather_object(shares, written)
    in_order = sorted(chain.from_iterable(shares), key=lambda pair: pair[0])
    reports = [report for _, report in in_order]
    texts = [report.text for report in reports]
    ranked = np.array([[vocabulary.tag_ids[tag] for tag, _ in r.tags[:5]] for r in reports])
    recall_5 = recall_at(5, ranked, [set(ids) for ids in split.tag_ids[:count]])
    if model.writer is None:
        return {"score": recall_5, "recall_5": recall_5}
    score = cider(split.split.references[:count], texts)
    distinct = float(len(set(texts)))
    return {"score": score, "cider": score, "recall_5": recall_5, "distinct": distinct}


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
    for start in range(0, len(rows), config.training.batch_size):
        chunk = rows[start : start + config.training.batch_size]
        images = torch.from_numpy(split.split.pixels(chunk)).to(worker.device)
        with autocast(config.training, worker.device):
            generated = generate(model, images, config.generation)
        yield from zip(chunk.tolist(), generated.reports(vocabulary), strict=True)


def save(
    checkpoint: Checkpoint,
    model: System,
    optimizer: torch.optim.Optimizer,
    log: RunLog | None,
    worker: Worker,
) -> None:
    """Have the first worker write checkpoint and metrics, and all of them stop if it can't."""
    problem: list[str | None] = [None]
    if log:
        try:
            checkpoint.save(model, optimizer)
            log.epoch(checkpoint.history)
        except UsageError as error:
            problem = [str(error)]
    if worker.world > 1:
        dist.broadcast_object_list(problem)
    if problem[0] is not None:
        raise TrainingStopped(problem[0])


def build_optimizer(model: System, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with a rate for the encoder's network and one for the rest; only matrices decay.

    The network's own fully connected layers, which serve the tag classifier, come with its
    weights and so take its rate.
    """
    network = nn.ModuleList([model.encoder, model.tag_classifier.hidden])
    ours = {id(p) for p in network.parameters()}
    groups = []
    for in_network, rate in (
        (False, config.learning_rate),
        (True, config.encoder_learning_rate),
    ):
        for decays in (True, False):
            params = [
                p
                for p in model.parameters()
                if p.requires_grad and (id(p) in ours) == in_network and (p.ndim > 1) == decays
            ]
            decay = config.weight_decay if decays else 0.0
            groups.append({"params": params, "base_rate": rate, "weight_decay": decay})
    return torch.optim.AdamW([group for group in groups if group["params"]])


def set_rates(
    optimizer: torch.optim.Optimizer, config: TrainingConfig, done: int, steps: int
) -> None:
    """The learning rates after ``done`` steps of ``config.epochs`` times ``steps``.

    A linear rise over the first ``warmup`` of them, then a half cosine down to ``final_rate``.
    """
    share, floor = (done + 1) / (config.epochs * steps), config.final_rate
    if share < config.warmup:
        factor = share / config.warmup
    else:
        fallen = (share - config.warmup) / (1 - config.warmup) if config.warmup < 1 else 0.0
        factor = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * fallen))
    for group in optimizer.param_groups:
        group["lr"] = group["base_rate"] * factor


def autocast(config: TrainingConfig, device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 where a GPU has it and the configuration lets it; else full precision."""
    if config.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()


def _summed(losses: Terms, total: Tensor, counted: Tensor) -> Tensor:
    values = torch.stack([total, *(getattr(losses, f.name) for f in fields(losses))])
    return (values.detach() * counted).sum(dim=1)


def _epoch_row(epoch: int, means: Tensor, worker: Worker) -> Row:
    if worker.world > 1:
        dist.all_reduce(means)
    names = ["loss", *(f"loss_{f.name}" for f in fields(Terms))]
    return {"epoch": float(epoch), **dict(zip(names, means.tolist(), strict=True))}


def _diverged(epoch: int, step: int, losses: Terms) -> TrainingStopped:
    means = {f.name: float(getattr(losses, f.name).detach().mean()) for f in fields(losses)}
    listed = ", ".join(f"{name} {value:.4g}" for name, value in means.items())
    return TrainingStopped(
        f"training diverged at epoch {epoch}, step {step}: a gradient is not finite (mean terms of "
        f"the loss: {listed}). Lower training.learning_rate or training.clip_norm, or the loss "
        "weights"
    )
