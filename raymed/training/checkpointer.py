"""What the training loop saves: checkpoints and, after each epoch, metrics and sample reports."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
import torch.distributed as dist

from raymed.config import Config
from raymed.errors import UsageError
from raymed.model.system import System
from raymed.training.background import BackgroundSaver
from raymed.training.checkpoint import Checkpoint, EpochProgress, Snapshot, checkpoint_name
from raymed.training.log import RunLog, Sample
from raymed.training.observer import Observer, Row
from raymed.training.worker import Worker


class TrainingFailed(UsageError):
    """Training cannot go on; raised on all workers at once, the checkpoints staying good."""


class Interrupted(TrainingFailed):
    """Training was asked to end before its last epoch, and has written a checkpoint first."""


class Checkpointer:
    """Writes in the background, on the first worker; leaving it waits for what is being written.

    Args:
        form: a checkpoint as all of the run's are, but for what it has learned; its path is the
            folder that takes them.
        model: without its encoder where that is frozen.
        optimizer: of the model.
        constant: files that its checkpoints have in common, by their names there.
        log: of the run; None on all workers but the first.
        observer: told of what could not be written.
    """

    def __init__(
        self,
        form: Checkpoint,
        model: System,
        optimizer: torch.optim.Optimizer,
        constant: Mapping[str, Path],
        log: RunLog | None,
        observer: Observer,
    ) -> None:
        self.form = form
        self.model = model
        self.optimizer = optimizer
        self.constant = constant
        self.log = log
        self.saver = BackgroundSaver(observer.warn)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.saver.close()

    def within(self, epoch: int, state: EpochProgress, history: list[Row]) -> None:
        """Write a checkpoint after a step of an epoch."""
        path = self.form.path / checkpoint_name(epoch, state.step)
        self._write(replace(self.form, history=history, partial=state, path=path), None)

    def after(
        self, config: Config, history: list[Row], curve: list[Row], samples: Sequence[Sample]
    ) -> None:
        """Write a checkpoint after an epoch, and what is to be read of it."""
        path = self.form.path / checkpoint_name(len(history))
        self._write(
            replace(self.form, config=config, history=history, curve=curve, path=path), samples
        )

    def whole(self, worker: Worker) -> None:
        """See that the last checkpoint was written.

        Raises:
            TrainingFailed: on all workers; it was not.
        """
        problem = [self.saver.wait()]
        if worker.world > 1:
            dist.broadcast_object_list(problem)
        if problem[0] is not None:
            raise TrainingFailed(problem[0])

    def ended(self, worker: Worker) -> Interrupted:
        """What to raise where a run is to end, once its checkpoint is whole.

        Raises:
            TrainingFailed: it was not written.
        """
        self.whole(worker)
        return Interrupted("asked to end; a checkpoint was written, and the same command goes on")

    def _write(self, checkpoint: Checkpoint, samples: Sequence[Sample] | None) -> None:
        log = self.log
        if log is None:
            return
        # The one before is written first: two copies of a large model are enough.
        self.saver.wait()
        snapshot = Snapshot.take(self.model, self.optimizer)

        def save() -> None:
            checkpoint.save(snapshot, self.form.config.launch.keep_checkpoints, self.constant)
            if samples is not None:
                log.epoch(checkpoint.history, samples)

        self.saver.submit(save)


class ValidationInterrupt:
    """Called after every batch of a validation; ends the run, on all workers, if it is to end.

    Args:
        saving: of the run.
        save: writes the checkpoint after the epoch's last step.
        ending: whether the run is to end.
        worker: of the run.
        batches: that every worker has at least; the workers agree after each of these.
    """

    def __init__(
        self,
        saving: Checkpointer,
        save: Callable[[], None],
        ending: Callable[[], bool],
        worker: Worker,
        batches: int,
    ) -> None:
        self.saving = saving
        self.save = save
        self.ending = ending
        self.worker = worker
        self.left = batches

    def __call__(self) -> None:
        """Raises `Interrupted` once the checkpoint is written."""
        self.left -= 1
        if self.left < 0:
            return
        ending = self.ending()
        if self.worker.world > 1:
            votes = torch.tensor(float(ending), device=self.worker.device)
            dist.all_reduce(votes)
            ending = bool(votes > 0)
        if ending:
            self.save()
            raise self.saving.ended(self.worker)
