"""Ctrl-C and SIGTERM; the latter is sent to preempted machines, and by `ray job stop`.

A command ends at once, by `KeyboardInterrupt` or `Terminated`. Training that has finished a step
defers SIGTERM instead: it writes a checkpoint and then ends by itself.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType

STATUS = 143
"""Exit status of a process that was terminated by SIGTERM, by the convention of shells."""

_deferring = Event()
_received = Event()


class Terminated(SystemExit):
    """SIGTERM was received; what was running is being shut down.

    Like `KeyboardInterrupt` it is no `Exception`, so handlers of errors let it pass. A program that
    does not catch it exits with `STATUS`.
    """

    def __init__(self) -> None:
        super().__init__(STATUS)


def in_main_thread() -> bool:
    """Whether this is the thread in which Python installs and runs signal handlers."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def restored_handlers(*numbers: int) -> Iterator[None]:
    """Restore the handlers of these signals after the block.

    In a thread other than the main one nothing can install a handler, so nothing is to be restored.
    """
    before = {number: signal.getsignal(number) for number in numbers} if in_main_thread() else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            # Without a handler that Python knows of, there is none that it could install again.
            if handler is not None:
                signal.signal(number, handler)


def install_sigterm_handler() -> None:
    """Let `defer_sigterm` take effect in this process.

    Outside the main thread this does nothing: the process then ends on SIGTERM as it would anyway.
    """
    if not in_main_thread():
        return
    before = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        if _deferring.is_set():
            _received.set()
        elif callable(before):
            before(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    signal.signal(signal.SIGTERM, handle)


@contextmanager
def defer_sigterm(from_start: bool = True) -> Iterator[None]:
    """Record SIGTERM inside the block instead of ending the process.

    This requires an earlier call of `install_sigterm_handler`.

    Args:
        from_start: Whether to defer it at once, or only after `defer_sigterm_from_now` is called.
    """
    _received.clear()
    if from_start:
        defer_sigterm_from_now()
    try:
        yield
    finally:
        _deferring.clear()


def defer_sigterm_from_now() -> None:
    """Start to defer SIGTERM: from now on there is something to save."""
    _deferring.set()


def sigterm_received() -> bool:
    """Whether SIGTERM was received since `defer_sigterm` was last entered."""
    return _received.is_set()


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """Leave the block by `KeyboardInterrupt` or `Terminated` when a signal is received.

    Any error that leaves the block after a signal is taken for its consequence, because C libraries
    turn what a signal handler raises into errors of their own. A second SIGTERM is ignored.
    """
    received: list[BaseException] = []

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        received.append(KeyboardInterrupt())
        raise received[-1]

    def terminate(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        signal.signal(number, signal.SIG_IGN)
        received.append(Terminated())
        raise received[-1]

    before = signal.signal(signal.SIGTERM, terminate)
    on_interrupt = signal.getsignal(signal.SIGINT)
    # A command that a script started in the background is to ignore Ctrl-C.
    if on_interrupt is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except Exception:
        if received:
            raise received[0] from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, on_interrupt)
