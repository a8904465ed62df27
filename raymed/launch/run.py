"""One training run from start to finish: in this process, or followed while Ray trains it."""

import signal
from functools import partial

from rich.console import Console

from raymed.absolute_paths import with_absolute_paths
from raymed.config import Config
from raymed.launch.cluster import connected, quiet_ray
from raymed.launch.printer import Printer
from raymed.launch.signals import (
    Terminated,
    defer_sigterm,
    defer_sigterm_from_now,
    install_sigterm_handler,
    restored_handlers,
    sigterm_received,
)
from raymed.reports.model_card import write_model_card
from raymed.run_folder import RunFolder
from raymed.storage import AnyPath
from raymed.training.checkpoint import Checkpoint
from raymed.training.errors import Interrupted
from raymed.training.loop import train
from raymed.training.observer import Status, is_finished
from raymed.training.setup import check
from raymed.training.worker import Worker, local_device


def run_training(config: Config, console: Console) -> Checkpoint:
    """Train a run, or resume it, and return its best checkpoint.

    Raises:
        UsageError: The dataset, the folder or the cluster does not fit the configuration.
        Terminated: SIGTERM was received; a checkpoint was written if there was progress to keep.
    """
    config = with_absolute_paths(config)
    dataset = check(config)
    folder = RunFolder.of(config)
    with folder.open(config):
        last = folder.resumed_from(dataset)
        if last and is_finished(last.history, config.training):
            _say(console, f"{folder.path}: already trained for {last.epoch} epochs; nothing to do")
            return folder.best_checkpoint()
        if last:
            step = f", step {last.partial.step}" if last.partial else ""
            _say(console, f"{folder.path}: resuming after epoch {last.epoch}{step}")
        try:
            if config.launch.workers == 0:
                _train_in_this_process(config, folder.path, console)
            else:
                with connected(config.launch.address):
                    _train_on_ray(config, folder.path, console)
        except Interrupted:
            raise Terminated from None
        write_model_card(folder.path, partial(_say, console))
    return folder.best_checkpoint()


def _train_in_this_process(config: Config, folder: AnyPath, console: Console) -> None:
    """Train in the calling thread, for debuggers: no Ray, no live progress bar, no other thread."""
    printer = _DeferringPrinter(config, console)
    with quiet_ray(), restored_handlers(signal.SIGTERM):
        install_sigterm_handler()
        with defer_sigterm(from_start=False):
            train(config, folder, Worker(local_device()), printer)


class _DeferringPrinter(Printer):
    """Defers SIGTERM until a checkpoint, from the first step on; before, nothing would be lost."""

    def progress(self, status: Status) -> None:
        if status.epoch:
            defer_sigterm_from_now()
        super().progress(status)


def _train_on_ray(config: Config, folder: AnyPath, console: Console) -> None:
    # Importing Ray Train loads torch.distributed: seconds that a mere check need not spend.
    import ray

    from raymed.launch.display import display_progress
    from raymed.launch.monitor import start_monitor
    from raymed.launch.trainer import check_room, describe_workers, fit

    check_room(config)
    _say(console, describe_workers(config))
    monitor = start_monitor(config.run.name)
    try:
        with display_progress(monitor, config, console):
            fit(config, folder, monitor)
    except KeyboardInterrupt:
        if not sigterm_received():
            raise
    finally:
        # A notebook keeps an error's frames, and with them the actor's handle.
        ray.kill(monitor)
    if sigterm_received():
        raise Interrupted


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
