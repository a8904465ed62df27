"""One command at a time on a folder."""

import fcntl
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from types import FrameType

from raymed.errors import UsageError
from raymed.storage import AnyPath, RemotePath, atomic_write_text, reason

LOCK_FILE = ".lock"
BEAT_S = 5.0
"""How often the holder of a folder that is a URI gives a sign of life."""
SILENCE_S = 16.0
"""After so long without a sign, the holder is taken for dead."""
LOST = signal.SIGUSR1
"""What interrupts a holder that has lost its folder."""


@contextmanager
def alone(folder: AnyPath) -> Iterator[None]:
    """Hold a folder inside the block.

    A local folder is let go by the system itself where the process dies. An object store knows no
    locks: there the holder writes a sign of life every few seconds, and who comes after one that
    was killed waits until there has been none for a while. A holder that was silent for so long, as
    where the machine was suspended, may find that another has taken the folder since: then what the
    block does is interrupted, as by Ctrl-C. On an object store, call it in the main thread.

    Raises:
        UsageError: another process holds it, or has taken it, or it cannot be written.
    """
    lock = _alone_by_signs(folder) if isinstance(folder, RemotePath) else _alone_by_system(folder)
    with ExitStack() as held:
        try:
            held.enter_context(lock)
        except OSError as error:
            raise UsageError(f"{folder}: cannot be written ({reason(error)})") from error
        yield


@contextmanager
def _alone_by_system(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise _held(folder, file.read()) from error
        file.truncate(0)
        file.write(_holder())
        file.flush()
        yield


@contextmanager
def _alone_by_signs(folder: RemotePath) -> Iterator[None]:
    file = folder / LOCK_FILE
    found = _read(file)
    until = time.monotonic() + SILENCE_S
    while found and time.monotonic() < until:
        time.sleep(1)
        if (now := _read(file)) and now != found:
            raise _held(folder, now.splitlines()[0])
    me = f"{_holder()}{uuid.uuid4().hex}"
    atomic_write_text(file, f"{me} 0\n")
    # Of two who come at the same time, the later writer stays.
    time.sleep(0.5)
    if not _read(file).startswith(me):
        raise _held(folder, _read(file).partition("\n")[0])
    over, lost = Event(), Event()
    main = threading.get_ident()

    def beat() -> None:
        count = 0
        while not over.wait(BEAT_S):
            count += 1
            # A store that is away for a while is no reason to let the folder go.
            with suppress(OSError):
                if not _read(file).startswith(me):
                    lost.set()
                    signal.pthread_kill(main, LOST)
                    return
                atomic_write_text(file, f"{me} {count}\n")

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        # Ray Train's answer to Ctrl-C ends its workers first.
        on_interrupt = signal.getsignal(signal.SIGINT)
        if callable(on_interrupt):
            on_interrupt(signal.SIGINT, frame)
        raise KeyboardInterrupt

    thread = Thread(target=beat, daemon=True)
    try:
        before = signal.signal(LOST, interrupt)
        try:
            thread.start()
            yield
        finally:
            over.set()
            thread.join()
            signal.signal(LOST, before)
    finally:
        if lost.is_set():
            raise _taken_over(folder, file) from None
        with suppress(OSError):
            if _read(file).startswith(me):
                file.unlink(missing_ok=True)


def _read(file: RemotePath) -> str:
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""


def _taken_over(folder: AnyPath, file: RemotePath) -> UsageError:
    try:
        holder = _read(file).partition("\n")[0]
    except OSError:
        holder = ""
    return UsageError(
        f"{folder}: this command gave no sign of life for {SILENCE_S:.0f} s, perhaps since the "
        f"machine was suspended, and another raymed works on it now ({holder or 'at its end'}); "
        "wait for its end, and give the command again"
    )


def _holder() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}\n"


def _held(folder: AnyPath, holder: str) -> UsageError:
    return UsageError(
        f"{folder}: another raymed works on it ({holder.strip() or 'starting'}); "
        "wait for its end, or choose another run.name"
    )
