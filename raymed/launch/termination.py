"""SIGTERM, as a preempted machine or `ray job stop` sends it: noted, so that it can be obeyed."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType

STATUS = 143
"""Exit status of a process that was ended by SIGTERM, as shells count it."""

_training = Event()
_noted = Event()


class Terminated(BaseException):
    """SIGTERM came; what was running is being brought to rest.

    No mistake of a program's, so that what catches these lets it pass, as with KeyboardInterrupt.
    """


def note_sigterm() -> None:
    """From now on note SIGTERM while training, instead of dying of it; in the main thread only."""
    before = signal.getsignal(signal.SIGTERM)

    def note(number: int, frame: FrameType | None) -> None:
        if _training.is_set():
            _noted.set()
        elif callable(before):
            before(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    signal.signal(signal.SIGTERM, note)


@contextmanager
def noting() -> Iterator[None]:
    """Train inside the block: SIGTERM is noted in it, where `note_sigterm` was called before."""
    _noted.clear()
    _training.set()
    try:
        yield
    finally:
        _training.clear()


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM inside the block raises `Terminated` in it, so that it is left in order.

    Once: a second one does not disturb that.
    """

    def terminate(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        signal.signal(number, signal.SIG_IGN)
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def noted() -> bool:
    """Whether SIGTERM came since training began."""
    return _noted.is_set()
