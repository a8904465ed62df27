"""Saving a run's progress: checkpoints and, after each epoch, its metrics and sample reports."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn, Self

import torch.distributed as dist

from raymed.training.background import BackgroundSaver
from raymed.training.checkpoint import Checkpoint, EpochProgress, Snapshot
from raymed.training.checkpoint_paths import checkpoint_name
from raymed.training.errors import Interrupted, TrainingFailed
from raymed.training.log import RunLog, Sample
from raymed.training.observer import Observer, Row
from raymed.training.setup import Setup
from raymed.training.validation import Validation
from raymed.training.worker import Worker


class Checkpointer:
    """Saves in the background, on the first worker; leaving the block waits for the pending save.

    Args:
        run: The run to save.
        log: Where metrics and samples are written; None on all workers but the first.
        worker: This worker.
        observer: Receives a warning for each save that fails.
    """

    def __init__(self, run: Setup, log: RunLog | None, worker: Worker, observer: Observer) -> None:
        self.run = run
        self.log = log
        self.worker = worker
        self.saver = BackgroundSaver(observer.warn)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.saver.close()

    def save_step(self, epoch: int, progress: EpochProgress, history: list[Row]) -> None:
        """Save a checkpoint within an epoch, after the step that ``progress`` names."""
        template = self.run.template
        path = template.path / checkpoint_name(epoch, progress.step)
        self._save(replace(template, history=history, partial=progress, path=path), None)

    def save_epoch(
        self, validated: Validation, history: list[Row], samples: Sequence[Sample]
    ) -> None:
        """Save a checkpoint at the end of an epoch, with its metrics and samples."""
        template = self.run.template
        path = template.path / checkpoint_name(len(history))
        checkpoint = replace(
            template, config=validated.config, history=history, curve=validated.curve, path=path
        )
        self._save(checkpoint, samples)

    def wait(self) -> None:
        """Wait until the last checkpoint is saved.

        Raises:
            TrainingFailed: It could not be saved. Raised on all workers.
        """
        problem = [self.saver.wait()]
        if self.worker.world > 1:
            dist.broadcast_object_list(problem)
        if problem[0] is not None:
            raise TrainingFailed(problem[0])

    def interrupt(self) -> NoReturn:
        """End the run early, once its last checkpoint is saved.

        Raises:
            Interrupted: The checkpoint is saved.
            TrainingFailed: It could not be saved.
        """
        self.wait()
        raise Interrupted("asked to stop; a checkpoint was saved, and the same command resumes it")

    def _save(self, checkpoint: Checkpoint, samples: Sequence[Sample] | None) -> None:
        run, log = self.run, self.log
        if log is None:
            return
        # Wait for the previous save first: two copies of a large model are enough.
        self.saver.wait()
        snapshot = Snapshot.take(run.model, run.optimizer)

        def save() -> None:
            checkpoint.save(snapshot, run.config.launch.keep_checkpoints, run.shared_files)
            if samples is not None:
                log.epoch(checkpoint.history, samples)

        self.saver.submit(save)
