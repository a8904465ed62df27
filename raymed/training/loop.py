"""The training loop: plain torch, on one process or on several with DDP; no Ray.

Read `train`, then the `Trainer`'s methods in the order in which they call each other. All
randomness depends on the seed, the epoch and an image's position in it, so that a run that is
interrupted and resumed ends with the same weights as one that is not.
"""

import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import fields, replace

import torch
from torch import Tensor, nn

from raymed.config import Config
from raymed.data.batches import steps_per_epoch
from raymed.metrics.ngrams import distinct
from raymed.progress import report_progress_to
from raymed.storage import AnyPath
from raymed.training.abandon import StepAbandoned, abandonable
from raymed.training.augment import augment
from raymed.training.checkpoint import EpochProgress, best_epoch
from raymed.training.checkpointer import Checkpointer
from raymed.training.errors import TrainingFailed
from raymed.training.log import RunLog
from raymed.training.loss import LossTerms
from raymed.training.loss_meter import LossMeter
from raymed.training.observer import Observer, Row, Status, epochs_since_best, is_finished
from raymed.training.optimizer import set_learning_rates
from raymed.training.prefetch import TrainingBatch, prefetch_to_device
from raymed.training.setup import Setup, set_up
from raymed.training.split_reports import sample_reports
from raymed.training.validation import (
    Validation,
    validate,
    validation_size,
    why_cider_is_zero,
)
from raymed.training.worker import Worker

LOSSES = ["loss", *(f"loss_{field.name}" for field in fields(LossTerms))]
"""The loss and its terms, as an epoch's row names them."""
STEPS_PER_FETCH = {"cuda": 10}
"""Steps between two fetches of the losses, by device type; 1 for others. A GPU has to finish its
work before it can answer, whereas a CPU has always finished."""


def train(config: Config, folder: AnyPath, worker: Worker, observer: Observer) -> None:
    """Train a run, resuming from its last checkpoint if it has one.

    Args:
        config: The run's configuration.
        folder: The run's folder, for checkpoints, metrics.csv and TensorBoard's files.
        worker: This worker.
        observer: Receives the run's progress, and is asked whether to stop.

    Raises:
        UsageError: The dataset, the weights or a checkpoint cannot be used.
        TrainingFailed: A gradient is not finite (the message names epoch, step and the terms of
            the loss), or the last checkpoint cannot be saved.
        Interrupted: The observer asked the run to stop; it can be resumed.
    """
    with _report_to(observer, worker, epoch=0):
        run = set_up(config, folder, worker, observer)
        _warn_if_cider_is_zero(run, worker, observer)
    log = RunLog(folder, run.template.history, run.config) if worker.rank == 0 else None
    with log or nullcontext(), Checkpointer(run, log, worker, observer) as checkpointer:
        Trainer(run, worker, observer, checkpointer).train()


class Trainer:
    """A run in training.

    Args:
        run: The run, ready for its next step.
        worker: This worker.
        observer: Receives the run's progress, and is asked whether to stop.
        checkpointer: Saves the run.

    Attributes:
        history: A row of metrics for each finished epoch.
        means: The names of the means over an epoch's images in its row.
    """

    def __init__(
        self, run: Setup, worker: Worker, observer: Observer, checkpointer: Checkpointer
    ) -> None:
        self.run = run
        self.worker = worker
        self.observer = observer
        self.checkpointer = checkpointer
        self.history: list[Row] = run.template.history
        self.means = [*LOSSES, *run.objective.measures]

    def train(self) -> None:
        """Train all epochs that are left, or those that patience allows.

        All workers have the same history, and so end after the same epoch.
        """
        progress = self.run.resumed.partial if self.run.resumed else None
        while not is_finished(self.history, self.run.config.training):
            epoch = len(self.history) + 1
            progress = progress or EpochProgress(0, [0.0] * len(self.means), 0.0)
            self.end_epoch(epoch, self.train_epoch(epoch, progress))
            progress = None
        self.checkpointer.wait()

    def train_epoch(self, epoch: int, progress: EpochProgress) -> EpochProgress:
        """Train the steps of an epoch that are left after ``progress``."""
        run, worker, config = self.run, self.worker, self.run.config
        steps = steps_per_epoch(len(run.training), config.training.batch_size)
        steps_per_fetch = STEPS_PER_FETCH.get(worker.device.type, 1)
        meter = LossMeter(worker, progress.sums)
        started = time.perf_counter() - progress.seconds

        def after(step: int) -> EpochProgress:
            return EpochProgress(step, meter.sums, time.perf_counter() - started)

        run.model.train()
        with closing(self._batches(epoch, first=progress.step)) as batches, self._abandonable():
            for step, batch in enumerate(batches, start=progress.step + 1):
                done = (epoch - 1) * steps + step - 1
                set_learning_rates(run.optimizer, config.training, done, steps)
                try:
                    meter.add(step, *train_step(run, batch, worker.world))
                except StepAbandoned:
                    if step - 1 > progress.step:
                        self.checkpointer.save_step(epoch, after(step - 1), self.history)
                    self.checkpointer.interrupt()
                to_save = step % config.launch.checkpoint_steps == 0
                if not (to_save or step % steps_per_fetch == 0 or step == steps):
                    continue
                self.observer.progress(Status(epoch, step, steps, meter.fetch(), worker.world))
                to_stop = meter.reduce(self.observer.ending())
                if meter.diverged:
                    raise _diverged(epoch, *meter.diverged)
                if step < steps and (to_save or to_stop):
                    self.checkpointer.save_step(epoch, after(step), self.history)
                    if to_stop:
                        self.checkpointer.interrupt()
        return after(steps)

    def end_epoch(self, epoch: int, trained: EpochProgress) -> None:
        """Validate, save and report an epoch."""
        run = self.run
        started = time.perf_counter()
        with _report_to(self.observer, self.worker, epoch):
            after_batch = self._interrupt_validation(epoch, trained)
            validated = validate(run.model, run.validation, run.config, self.worker, after_batch)
        row = self._row(epoch, trained, validated)
        row["seconds"] = trained.seconds + time.perf_counter() - started
        self.history = [*self.history, row]
        samples = []
        if self.worker.rank == 0 and best_epoch(self.history) == epoch:
            samples = sample_reports(run.model, run.validation, validated.config)
        self.checkpointer.save_epoch(validated, self.history, samples)
        self.observer.epoch(row)
        finished = is_finished(self.history, run.config.training)
        if self.worker.any(self.observer.ending()) and not finished:
            self.checkpointer.interrupt()

    def _batches(self, epoch: int, first: int) -> Generator[TrainingBatch]:
        """This worker's shares of an epoch's batches, without the first so many; augmented."""
        run, worker, training = self.run, self.worker, self.run.config.training
        batches = run.training.batches(
            training.batch_size, training.seed, epoch, worker.rank, worker.world, first
        )
        with closing(prefetch_to_device(batches, run.model, worker.device)) as fetched:
            for batch, passages in fetched:
                images = augment(batch.images, batch.seeds, run.config.augmentation)
                yield TrainingBatch(replace(batch, images=images), passages)

    def _abandonable(self) -> AbstractContextManager[None]:
        """Let a step be abandoned where it may take a CPU tens of seconds, as with VGG-19."""
        encoder = self.run.model.encoder
        if encoder is None or self.worker.world > 1 or self.worker.device.type != "cpu":
            return nullcontext()
        return abandonable(encoder, self.observer.ending)

    def _interrupt_validation(self, epoch: int, trained: EpochProgress) -> Callable[[], None]:
        """What to call after each batch of a validation, to stop there if the run is asked to.

        The workers agree after each batch that all of them have; one may have a batch more.
        """
        run, world = self.run, self.worker.world
        images = validation_size(run.validation, run.config) // world
        remaining = -(-images // run.config.training.batch_size)

        def after_batch() -> None:
            nonlocal remaining
            remaining -= 1
            if remaining >= 0 and self.worker.any(self.observer.ending()):
                self.checkpointer.save_step(epoch, trained, self.history)
                self.checkpointer.interrupt()

        return after_batch

    def _row(self, epoch: int, trained: EpochProgress, validated: Validation) -> Row:
        """An epoch's metrics."""
        images = len(self.run.training)
        row: Row = {"epoch": float(epoch)}
        sums = zip(self.means, trained.sums, strict=True)
        row |= {name: total / images for name, total in sums}
        row |= validated.row
        row["best_score"] = max(each["score"] for each in [*self.history, row])
        if self.run.config.training.patience is not None:
            row["epochs_since_best"] = float(epochs_since_best([*self.history, row]))
        row["learning_rate"] = self.run.optimizer.param_groups[0]["lr"]
        row["images_per_second"] = images / trained.seconds
        return row


def train_step(run: Setup, training_batch: TrainingBatch, world: int) -> tuple[Tensor, Tensor]:
    """Take one optimiser step. Nothing here waits for the device, unless the objective does.

    Returns:
        The sums of the loss, its terms and what the objective measures over this worker's images,
        and the number of these images, [1 + terms + measures + 1]; and the gradient's norm before
        clipping, a scalar.
    """
    terms, measured = run.objective(training_batch)
    total = terms.total(run.config.loss)
    weights = training_batch.batch.weights
    # The weights of all shares sum to 1, and DDP takes the mean over the workers.
    loss = (total * weights).sum() * world
    run.optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(run.model.parameters(), run.config.training.clip_norm)
    run.optimizer.step()
    counted = weights > 0
    each = (getattr(terms, field.name) for field in fields(terms))
    values = torch.stack([total, *each, *measured, counted])
    return (values.detach() * counted).sum(dim=1), norm


def _warn_if_cider_is_zero(run: Setup, worker: Worker, observer: Observer) -> None:
    """Warn of a validation split on which no epoch's score can differ from another's."""
    count = validation_size(run.validation, run.config)
    references = run.validation.split.references[:count]
    if worker.rank or run.resumed or run.model.writer is None or distinct(references) > 1:
        return
    observer.warn(
        f"{why_cider_is_zero(count, 'val')}. The best epoch will be the one with the lowest "
        "training loss; to rank epochs by score, validate on more studies"
    )


def _report_to(observer: Observer, worker: Worker, epoch: int) -> AbstractContextManager[None]:
    """Report to the observer the progress of long work inside the block."""

    def report(doing: str, done: int, total: int | None) -> None:
        observer.progress(Status(epoch, done, total or done, workers=worker.world, doing=doing))

    return report_progress_to(report)


def _diverged(epoch: int, step: int, means: list[float]) -> TrainingFailed:
    listed = ", ".join(
        f"{name.removeprefix('loss_')} {value:.4g}"
        for name, value in zip(LOSSES[1:], means[1 : len(LOSSES)], strict=True)
    )
    return TrainingFailed(
        f"training diverged at epoch {epoch}, step {step}: a gradient is not finite (mean terms of "
        f"the loss: {listed}). Lower training.learning_rate or training.clip_norm, or the loss "
        "weights"
    )
