"""Where a run's checkpoints lie. Loads no torch, which a sweep's clients do without."""

from collections.abc import Sequence

from raymed.storage import AnyPath
from raymed.training.observer import Row, best_epoch

CHECKPOINT_PATH = "checkpoint_path"
"""The key of a checkpoint's path, beside the metrics that are reported to Ray."""


def checkpoints_of(run_folder: AnyPath) -> AnyPath:
    """The folder of a run's checkpoints."""
    return run_folder / "checkpoints"


def checkpoint_name(epoch: int, step: int | None = None) -> str:
    """The folder name of a checkpoint after an epoch, or after a step of it, both from 1."""
    return f"epoch-{epoch:04d}" + ("" if step is None else f"-step-{step:06d}")


def best_checkpoint_path(run_folder: AnyPath, rows: Sequence[Row]) -> AnyPath:
    """The checkpoint of the best of the epochs with these metrics, which a run always keeps."""
    return checkpoints_of(run_folder) / checkpoint_name(best_epoch(rows))
