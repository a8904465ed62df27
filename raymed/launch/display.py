"""A run's progress on the console: a line for each epoch, and a bar while it lasts."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from raymed.config import Config
from raymed.launch.monitor import Update
from raymed.launch.printer import Printer, status_line
from raymed.launch.signals import (
    defer_sigterm,
    install_sigterm_handler,
    restored_handlers,
    sigterm_received,
)
from raymed.progress import format_progress
from raymed.training.observer import Status

STARTING = "starting the workers"
POLL_S = 0.5


@contextmanager
def display_progress(monitor: ActorHandle, config: Config, console: Console) -> Iterator[None]:
    """Print what the workers of a run publish inside the block, with a bar on a terminal.

    SIGTERM inside the block is passed on to the workers, which write a checkpoint and stop. Before
    they have trained a step there is nothing to write, and they are stopped as by Ctrl-C.
    """
    display = _Display(monitor, config, console)
    thread = Thread(target=display.follow, daemon=True)
    with restored_handlers(signal.SIGTERM):
        install_sigterm_handler()
        with display.bar, defer_sigterm():
            thread.start()
            try:
                yield
            finally:
                display.over.set()
                thread.join()


class _Display:
    """Polls the monitor in a thread of its own; made in the thread that trains."""

    def __init__(self, monitor: ActorHandle, config: Config, console: Console) -> None:
        self.monitor = monitor
        self.printer = Printer(config, console, bar=console.is_terminal)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task(STARTING, total=config.training.epochs)
        self.over = Event()
        self.main = threading.get_ident()
        self.stopping = False

    def follow(self) -> None:
        """Show updates until `over` is set, and once more after that."""
        status = None
        last = False
        while not last:
            last = self.over.wait(POLL_S)
            if sigterm_received() and not self.stopping:
                self.stopping = True
                self._stop_workers(status)
            try:
                update: Update = ray.get(self.monitor.drain.remote())
            except RayActorError:
                self.printer.warn("the run's monitor died; training continues without progress")
                return
            status = update.status
            self._show(update)

    def _stop_workers(self, status: Status | None) -> None:
        self.monitor.stop.remote()
        if status and status.epoch:
            self.printer.say("SIGTERM received: the workers write a checkpoint and stop")
        else:
            signal.pthread_kill(self.main, signal.SIGINT)

    def _show(self, update: Update) -> None:
        for text in update.warnings:
            self.printer.warn(text)
        for row in update.rows:
            self.printer.epoch(row)
        status = update.status
        if status is None:
            self.printer.far(STARTING)
            return
        self.printer.progress(status)
        line = status_line(status, self.printer.epochs)
        if status.doing:
            line = format_progress(line, status.done, status.total)
        else:
            self.bar.update(self.task, completed=status.epoch - 1 + status.done / status.total)
        self.bar.update(self.task, description=line)
