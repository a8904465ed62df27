"""Faults that tests cause on purpose."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from ray.util.state import list_actors

from raymed.training.log import read_metrics


@contextmanager
def killing_actors(sweep: Path, moments: Sequence[tuple[int, str]]) -> Iterator[list[int]]:
    """Kill an actor of a class each time a sweep's trials have so many rows of metrics in all.

    Gives the list that the killed processes' ids are put into.
    """
    killed: list[int] = []
    over = Event()

    def kill() -> None:
        for count, name in moments:
            while not over.is_set() and epochs_of(sweep) < count:
                over.wait(0.02)
            pids: list[int] = []
            while not over.is_set() and not pids:
                pids = [pid for pid in alive(name) if pid not in killed]
            if pids:
                os.kill(pids[-1], signal.SIGKILL)
                killed.append(pids[-1])

    thread = Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def epochs_of(sweep: Path) -> int:
    """Rows of metrics of all trials of a sweep together."""
    return sum(len(read_metrics(file)) for file in sweep.glob("trials/*/metrics.csv"))


def processes(name: str, address: str) -> list[int]:
    """Process ids of the actors of a class, of the Ray at an address, as this machine knows them.

    Ray's own list takes long on a busy machine; a short run could meanwhile come to its end.
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if not _command(process).startswith(f"ray::{name}"):
                continue
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            if address in _command(process.parent / parent):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def _command(process: Path) -> str:
    return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()


def alive(name: str, address: str | None = None) -> list[int]:
    """Process ids of the actors of a class that are alive, in the tests' own Ray if not another."""
    actors = list_actors(
        address=address or os.environ["RAY_ADDRESS"],
        filters=[("class_name", "=", name), ("state", "=", "ALIVE")],
    )
    return [actor.pid for actor in actors if actor.pid]
