"""Following a run on the console: a line for each epoch, and a bar while it lasts."""

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
from raymed.launch.printer import Printer, status_line
from raymed.launch.termination import note_sigterm, noted, noting
from raymed.launch.watch import News
from raymed.progress import format_progress


@contextmanager
def following(watch: ActorHandle, config: Config, console: Console) -> Iterator[None]:
    """Print what the workers of a run say inside the block, with a bar on a terminal.

    A SIGTERM inside the block is passed on to the workers, which write a checkpoint and end. Before
    they have trained a step there is none to write, and they are ended as by Ctrl-C.
    """
    main = threading.get_ident()
    printer = Printer(config, console, bar=console.is_terminal)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    task = bar.add_task("starting the workers", total=config.training.epochs)
    over = Event()

    def follow() -> None:
        told = last = False
        status = None
        while not last:
            last = over.wait(0.5)
            if noted() and not told:
                told = True
                watch.end.remote()
                if status and status.epoch:
                    printer.say("SIGTERM: the workers write a checkpoint and end")
                else:
                    signal.pthread_kill(main, signal.SIGINT)
            try:
                news: News = ray.get(watch.heard.remote())
            except RayActorError:
                printer.warn("the actor that watches the run died; training goes on unseen")
                return
            for text in news.warnings:
                printer.warn(text)
            for row in news.rows:
                printer.epoch(row)
            status = news.status
            if status is None:
                printer.far("starting the workers")
                continue
            printer.progress(status)
            note = status_line(status, printer.epochs)
            if status.doing:
                note = format_progress(note, status.done, status.total)
            else:
                bar.update(task, completed=status.epoch - 1 + status.done / status.total)
            bar.update(task, description=note)

    before = signal.getsignal(signal.SIGTERM)
    note_sigterm()
    thread = Thread(target=follow, daemon=True)
    with bar, noting():
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            signal.signal(signal.SIGTERM, before)
