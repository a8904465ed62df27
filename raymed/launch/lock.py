"""One command at a time on a folder."""

import fcntl
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

from raymed.errors import UsageError
from raymed.storage import Place, Remote, reason, write_whole

LOCK_FILE = ".lock"
BEAT_S = 5.0
"""How often the holder of a folder that is a URI gives a sign of life."""
SILENCE_S = 16.0
"""After so long without a sign, the holder is taken for dead."""


@contextmanager
def alone(folder: Place) -> Iterator[None]:
    """Hold a folder inside the block.

    A local folder is let go by the system itself where the process dies. An object store knows no
    locks: there the holder writes a sign of life every few seconds, and who comes after one that
    was killed waits until there has been none for a while.

    Raises:
        UsageError: another process holds it, or it cannot be written.
    """
    lock = _alone_by_signs(folder) if isinstance(folder, Remote) else _alone_by_system(folder)
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
def _alone_by_signs(folder: Remote) -> Iterator[None]:
    file = folder / LOCK_FILE
    found = _read(file)
    until = time.monotonic() + SILENCE_S
    while found and time.monotonic() < until:
        time.sleep(1)
        if (now := _read(file)) and now != found:
            raise _held(folder, now.splitlines()[0])
    me = f"{_holder()}{uuid.uuid4().hex}"
    write_whole(file, f"{me} 0\n")
    # Of two who come at the same time, the later writer stays.
    time.sleep(0.5)
    if not _read(file).startswith(me):
        raise _held(folder, _read(file).partition("\n")[0])
    over = Event()

    def beat() -> None:
        count = 0
        while not over.wait(BEAT_S):
            count += 1
            # A store that is away for a while is no reason to let the folder go.
            with suppress(OSError):
                write_whole(file, f"{me} {count}\n")

    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with suppress(OSError):
            file.unlink(missing_ok=True)


def _read(file: Remote) -> str:
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""


def _holder() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}\n"


def _held(folder: Place, holder: str) -> UsageError:
    return UsageError(
        f"{folder}: another raymed works on it ({holder.strip() or 'starting'}); "
        "wait for its end, or choose another run.name"
    )
