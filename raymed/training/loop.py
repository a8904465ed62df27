"""The training loop: plain torch, on one process or on many with DDP; no Ray.

Read `train`, then what it calls: `train_epoch`, `train_step`, `end_epoch`. Everything random
depends on the seed, the epoch and an image's place in it, so a run that is resumed ends where an
uninterrupted one ends.
"""

import math
import time
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import fields
from functools import partial

import torch
from torch import Tensor, nn

from raymed.config import Config
from raymed.data.batches import steps_per_epoch
from raymed.metrics.ngrams import distinct
from raymed.progress import reported_to
from raymed.sections import TrainingConfig
from raymed.storage import AnyPath
from raymed.training.abandon import StepAbandoned, abandonable
from raymed.training.checkpoint import Partial, best_epoch
from raymed.training.feeding import Taught, fed
from raymed.training.log import RunLog
from raymed.training.loss import Terms, terms
from raymed.training.observer import Observer, Row, Status
from raymed.training.reading import Reader
from raymed.training.saving import LeavingValidation, Saving, TrainingStopped
from raymed.training.setup import Setup, set_up
from raymed.training.validation import no_cider, sample_reports, validate
from raymed.training.worker import Worker

NAMES = ["loss", *(f"loss_{field.name}" for field in fields(Terms))]
"""The loss and its terms, as an epoch's row names them."""
STEPS_BETWEEN_READINGS = {"cuda": 10}
"""A GPU is asked for losses only now and then, as it has to end its work to answer; a CPU, which
works while it is asked, at every step."""


def train(config: Config, folder: AnyPath, worker: Worker, observer: Observer) -> None:
    """Train one run, from its last checkpoint if it has one.

    Args:
        config: the run's.
        folder: the run's; takes checkpoints, metrics.csv and TensorBoard's files.
        worker: rank, world size and device; with a world above 1, torch.distributed is ready.
        observer: told how far the run is, and asked whether it is to end.

    Raises:
        UsageError: the dataset, the weights or a checkpoint cannot be used.
        TrainingStopped: a gradient is no longer finite, naming epoch, step and the terms of the
            loss; or the last checkpoint cannot be written.
        TrainingEnded: the observer wanted the run to end; it goes on from where it was.
    """
    with _reporting(observer, worker, epoch=0):
        run = set_up(config, folder, worker, observer)
        _see_the_score(run, worker, observer)
    history = run.template.history
    unfinished = run.last.partial if run.last else None
    log = RunLog(folder, history, run.config) if worker.rank == 0 else None
    with (
        log or nullcontext(),
        Saving(run.template, run.model, run.optimizer, run.constant, log, observer) as saving,
    ):
        for epoch in range(len(history) + 1, run.config.training.epochs + 1):
            so_far = unfinished or Partial(0, [0.0] * len(NAMES), 0.0)
            unfinished = None
            trained = train_epoch(run, epoch, so_far, history, worker, observer, saving)
            history = end_epoch(run, epoch, trained, history, worker, observer, saving)
        saving.whole(worker)


def train_epoch(
    run: Setup,
    epoch: int,
    so_far: Partial,
    history: list[Row],
    worker: Worker,
    observer: Observer,
    saving: Saving,
) -> Partial:
    """Train the steps of an epoch that are left after ``so_far``."""
    config = run.config
    steps = steps_per_epoch(len(run.training), config.training.batch_size)
    every = STEPS_BETWEEN_READINGS.get(worker.device.type, 1)
    reader = Reader(worker, so_far.sums)
    began = time.perf_counter() - so_far.seconds
    run.model.train()
    order = config.training.batch_size, config.training.seed, epoch
    batches = run.training.batches(*order, worker.rank, worker.world, first=so_far.step)
    with (
        closing(fed(batches, run.model, worker.device)) as feed,
        _abandonable(run, worker, observer),
    ):
        for step, taught in enumerate(feed, start=so_far.step + 1):
            set_rates(run.optimizer, config.training, (epoch - 1) * steps + step - 1, steps)
            try:
                reader.add(step, *train_step(run, taught, worker.world))
            except StepAbandoned:
                if step - 1 > so_far.step:
                    seconds = time.perf_counter() - began
                    saving.within(epoch, Partial(step - 1, reader.sums, seconds), history)
                raise saving.ended(worker) from None
            to_save = step % config.launch.checkpoint_steps == 0
            if not (step % every == 0 or step == steps or to_save):
                continue
            observer.progress(Status(epoch, step, steps, reader.read(), worker.world))
            ending = reader.share(observer.ending())
            if reader.diverged:
                raise _diverged(epoch, *reader.diverged)
            if step < steps and (ending or to_save):
                seconds = time.perf_counter() - began
                saving.within(epoch, Partial(step, reader.sums, seconds), history)
                if ending:
                    raise saving.ended(worker)
    return Partial(steps, reader.sums, time.perf_counter() - began)


def _abandonable(run: Setup, worker: Worker, observer: Observer) -> AbstractContextManager[None]:
    """Let a step be left where it may take a CPU tens of seconds, as with VGG-19 in the loop."""
    encoder = run.model.encoder
    if encoder is None or worker.world > 1 or worker.device.type != "cpu":
        return nullcontext()
    return abandonable(encoder, observer.ending)


def train_step(run: Setup, taught: Taught, world: int) -> tuple[Tensor, Tensor]:
    """One optimiser step, in which nothing waits for the device.

    Returns:
        The sums over this worker's images of their loss and its terms, and how many they are,
        [1 + terms + 1]; and the gradient's norm before clipping.
    """
    batch, passages = taught
    with run.model.computing():
        outputs = run.parallel(batch.images, passages, batch.seeds)
        losses = terms(outputs, batch)
    total = losses.total(run.config.loss)
    # The weights of all shares sum to 1, and DDP takes the mean over the workers.
    loss = (total * batch.weights).sum() * world
    run.optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(run.model.parameters(), run.config.training.clip_norm)
    run.optimizer.step()
    counted = batch.weights > 0
    values = torch.stack([total, *(getattr(losses, f.name) for f in fields(losses)), counted])
    return (values.detach() * counted).sum(dim=1), norm


def end_epoch(
    run: Setup,
    epoch: int,
    trained: Partial,
    history: list[Row],
    worker: Worker,
    observer: Observer,
    saving: Saving,
) -> list[Row]:
    """Validate, save and report an epoch; the history with its row."""
    began = time.perf_counter()
    images = len(run.training)
    validated_on = min(
        run.config.data.validation_images or len(run.validation), len(run.validation)
    )
    row: Row = {"epoch": float(epoch)}
    row |= {name: total / images for name, total in zip(NAMES, trained.sums, strict=True)}
    with _reporting(observer, worker, epoch):
        validated = validate(
            run.model,
            run.validation,
            run.vocabulary,
            run.config,
            worker,
            LeavingValidation(
                saving,
                partial(saving.within, epoch, trained, history),
                observer.ending,
                worker,
                # As many as the worker with the fewest images has.
                batches=-(-(validated_on // worker.world) // run.config.training.batch_size),
            ),
        )
    row |= validated.row
    row["best_score"] = max(r["score"] for r in [*history, row])
    row["learning_rate"] = run.optimizer.param_groups[0]["lr"]
    row["images_per_second"] = images / trained.seconds
    row["seconds"] = trained.seconds + time.perf_counter() - began
    history = [*history, row]
    samples = []
    if worker.rank == 0 and best_epoch(history) == epoch:
        samples = sample_reports(
            run.model, run.validation, run.vocabulary, validated.config, worker
        )
    saving.after(validated.config, history, validated.curve, samples)
    observer.epoch(row)
    if worker.any(observer.ending()) and epoch < run.config.training.epochs:
        raise saving.ended(worker)
    return history


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


def _see_the_score(run: Setup, worker: Worker, observer: Observer) -> None:
    """Say so where no epoch's score can tell it from another's."""
    count = run.config.data.validation_images or len(run.validation)
    references = run.validation.split.references[:count]
    if worker.rank or run.last or run.model.writer is None or distinct(references) > 1:
        return
    observer.warn(
        f"{no_cider(len(references), 'val')}. The best epoch is then that of the lowest training "
        "loss; for a score, validate on more studies"
    )


def _reporting(observer: Observer, worker: Worker, epoch: int) -> AbstractContextManager[None]:
    """Report to the observer how far the work inside the block is."""

    def report(doing: str, done: int, total: int | None) -> None:
        observer.progress(Status(epoch, done, total or done, workers=worker.world, doing=doing))

    return reported_to(report)


def _diverged(epoch: int, step: int, means: list[float]) -> TrainingStopped:
    listed = ", ".join(
        f"{name.removeprefix('loss_')} {value:.4g}"
        for name, value in zip(NAMES[1:], means[1:], strict=True)
    )
    return TrainingStopped(
        f"training diverged at epoch {epoch}, step {step}: a gradient is not finite (mean terms of "
        f"the loss: {listed}). Lower training.learning_rate or training.clip_norm, or the loss "
        "weights"
    )
