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
from raymed.launch.printer import Printer
from raymed.launch.termination import note_sigterm, noted, noting
from raymed.launch.watch import News


@contextmanager
def following(watch: ActorHandle, config: Config, console: Console) -> Iterator[None]:
    """Print what the workers of a run say inside the block, with a bar on a terminal.

    A SIGTERM inside the block is passed on to the workers, which write a checkpoint and end. Before
    they have trained a step there is none to write, and they are ended as by Ctrl-C.
    """
    main = threading.get_ident()
    printer = Printer(config, console)
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
            if status:
                printer.progress(status)
            if status and status.epoch:
                done = status.epoch - 1 + status.done / status.total
                note = f"epoch {status.epoch}, loss {status.loss:.2f}"
                bar.update(task, completed=done, description=note)
            elif status:
                bar.update(task, description=f"{status.done} of {status.total} images")

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
