"""Ctrl-C and SIGTERM, the latter as a preempted machine or `ray job stop` sends it.

A command leaves what it does at once, by `KeyboardInterrupt` or `Terminated`; but training, once a
step is done, notes SIGTERM, and ends by itself when a checkpoint is written.
"""

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


def install_sigterm_handler() -> None:
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
def defer_sigterm(at_once: bool = True) -> Iterator[None]:
    """Train inside the block: SIGTERM is noted in it, where `note_sigterm` was called before.

    Args:
        at_once: from the start; else once `note_from_now` is called.
    """
    _noted.clear()
    if at_once:
        defer_sigterm_from_now()
    try:
        yield
    finally:
        _training.clear()


def defer_sigterm_from_now() -> None:
    """From now on there is something to be kept."""
    _training.set()


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """A command inside the block is left by `KeyboardInterrupt` or `Terminated` if a signal comes.

    Whatever leaves the block after a signal is taken for its consequence: libraries in C turn what
    a signal's handler raises into errors of their own. A second SIGTERM disturbs nothing.
    """
    came: list[BaseException] = []

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        came.append(KeyboardInterrupt())
        raise came[-1]

    def terminate(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        signal.signal(number, signal.SIG_IGN)
        came.append(Terminated())
        raise came[-1]

    before = signal.signal(signal.SIGTERM, terminate)
    on_interrupt = signal.getsignal(signal.SIGINT)
    # A command that a script started in the background is to ignore Ctrl-C.
    if on_interrupt is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except Exception:
        if came:
            raise came[0] from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, on_interrupt)


def sigterm_received() -> bool:
    """Whether SIGTERM came since training began."""
    return _noted.is_set()
