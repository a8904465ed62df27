"""Progress of long work: a bar on a terminal, elsewhere a line at least every half minute."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Event, Thread
from types import TracebackType
from typing import Self, TypeVar

import rich
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

INTERVAL_S = 25.0
"""Seconds between two lines."""
TICK_S = 1.0
"""Seconds between two checks whether a line is due for work that does not advance."""

Item = TypeVar("Item")
Sink = Callable[[str, int, int | None], None]

_sink: ContextVar[Sink | None] = ContextVar("sink", default=None)
_console: ContextVar[Console | None] = ContextVar("console", default=None)


class Throttle:
    """Limits how often lines are printed."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether the next line is due; the clock then starts anew."""
        if time.monotonic() - self._last < INTERVAL_S:
            return False
        self._last = time.monotonic()
        return True


class Progress:
    """Shows the progress of the work inside the block.

    Args:
        what: What is being done, as a phrase such as ``writing reports``.
        total: The number of items; None while unknown.
        console: Where to print; by default that of `show_progress_on`, or else rich's own.
    """

    def __init__(self, what: str, total: int | None, console: Console | None = None) -> None:
        self.what = what
        self.done = 0
        self.total = total
        self._console = console or _console.get() or rich.get_console()
        self._bar: Bar | None = None
        self._pulse = Throttle()
        self._finished = Event()
        self._ticker: Thread | None = None

    def __enter__(self) -> Self:
        self._sink = _sink.get()
        if self._sink:
            self._sink(self.what, self.done, self.total)
        elif self._console.is_terminal:
            self._bar = bar(self._console)
            self._task = self._bar.add_task(self.what, total=self.total)
            self._bar.start()
        else:
            # One item may take minutes, or wait for another process.
            self._ticker = Thread(target=self._tick, daemon=True, name="progress")
            self._ticker.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._finished.set()
        if self._ticker:
            self._ticker.join()
        if self._bar:
            self._bar.stop()

    def advance(self, count: int = 1) -> None:
        """Count ``count`` more items as done; costs next to nothing."""
        self.update(self.done + count)

    def update(
        self, done: int | None = None, what: str | None = None, total: int | None = None
    ) -> None:
        """Set what is given: the number of items done, the phrase, the number of items."""
        self.done = self.done if done is None else done
        self.what = what or self.what
        self.total = self.total if total is None else total
        if self._sink:
            self._sink(self.what, self.done, self.total)
        elif self._bar:
            self._bar.update(
                self._task, completed=self.done, total=self.total, description=self.what
            )
        else:
            self._print_if_due()

    def _tick(self) -> None:
        while not self._finished.wait(TICK_S):
            self._print_if_due()

    def _print_if_due(self) -> None:
        if self._pulse.due():
            line = format_progress(self.what, self.done, self.total)
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def track(
    items: Iterable[Item], what: str, total: int, console: Console | None = None
) -> Iterator[Item]:
    """The items, with their progress shown."""
    with Progress(what, total, console) as progress:
        for item in items:
            yield item
            progress.advance()


@contextmanager
def report_progress_to(sink: Sink) -> Iterator[None]:
    """Send all progress inside the block to ``sink`` instead of printing it."""
    token = _sink.set(sink)
    try:
        yield
    finally:
        _sink.reset(token)


@contextmanager
def show_progress_on(console: Console) -> Iterator[None]:
    """Print all progress inside the block on ``console`` where no other one is given."""
    token = _console.set(console)
    try:
        yield
    finally:
        _console.reset(token)


def format_progress(what: str, done: int, total: int | None) -> str:
    """A line such as ``writing reports: 120 of 500 (24%)``."""
    if total is None:
        return f"{what}: {done:,} so far"
    return f"{what}: {done:,} of {total:,} ({done / max(total, 1):.0%})"


def bar(console: Console) -> Bar:
    """A progress bar that disappears when done; it appears on a terminal only."""
    return Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
