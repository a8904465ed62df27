"""Every lock that raymed takes: on files and folders, on bytes of a shared file, and in a store.

On a local disk the operating system keeps the locks, and releases them when their holder dies. An
object store has none: there the holder of a folder writes a heartbeat to a lock file, in which it
names itself as the owner.
"""

import ctypes
import fcntl
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from types import FrameType
from typing import BinaryIO

from raymed.errors import UsageError
from raymed.storage import AnyPath, RemotePath, atomic_write_text, reason

LOCK_FILE = ".lock"
"""The name of a locked folder's lock file."""
POLL_S = 0.1
"""Interval at which a byte that another process has locked is tried again, in seconds."""
HEARTBEAT_S = 5.0
"""Interval at which the holder of a folder in a store rewrites its lock file, in seconds."""
SILENCE_S = 16.0
"""A holder without a heartbeat for this long, in seconds, is presumed dead."""
SETTLE_S = 0.5
"""Time, in seconds, after which of two simultaneous writers of a lock file one has won."""
LOCK_LOST = signal.SIGUSR1
"""The signal that interrupts a holder whose folder another process has taken over."""


@contextmanager
def file_lock(file: Path) -> Iterator[None]:
    """Hold a lock file inside the block, after waiting for whoever else holds it.

    Missing folders are made.

    Raises:
        OSError: The file cannot be made, or its disk has no locks.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold an existing file or folder inside the block; yields False if that cannot be had now."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        yield _try_flock(descriptor) is None
    finally:
        os.close(descriptor)


@contextmanager
def byte_lock(
    file: BinaryIO, offset: int, while_waiting: Callable[[], None] | None
) -> Iterator[bool]:
    """Hold one byte of an open lock file inside the block, among processes.

    Args:
        file: Open for writing; the byte need not exist.
        offset: The byte's position.
        while_waiting: Called again and again as long as another process holds the byte; it may
            raise. The system's own waiting could not be interrupted in a thread that receives no
            signals, such as a worker's. None: do not wait, and yield False.
    """
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
            break
        except (BlockingIOError, PermissionError):
            if while_waiting is None:
                yield False
                return
        while_waiting()
        time.sleep(POLL_S)
    try:
        yield True
    finally:
        fcntl.lockf(file, fcntl.LOCK_UN, 1, offset)


@contextmanager
def folder_lock(folder: AnyPath) -> Iterator[None]:
    """Hold a folder inside the block, made if it is missing; refuse if another process holds it.

    The lock on a local folder ends with its process. In an object store, whoever comes after a
    holder that was killed first waits until its heartbeat has been missing for `SILENCE_S`. A
    holder that was silent for that long, because its machine was suspended, say, may find that
    another process has taken over the folder: the block is then interrupted as by Ctrl-C. For an
    object store, call this in the main thread.

    Raises:
        UsageError: Another process holds the folder or has taken it over, or it cannot be written.
    """
    lock = _store_lock(folder) if isinstance(folder, RemotePath) else _local_lock(folder)
    with ExitStack() as held:
        try:
            held.enter_context(lock)
        except OSError as error:
            raise UsageError(f"{folder}: cannot be written ({reason(error)})") from error
        yield


@contextmanager
def _local_lock(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a+") as file:
        if (error := _try_flock(file.fileno())) is not None:
            file.seek(0)
            raise _held(folder, file.read()) from error
        file.truncate(0)
        file.write(f"{_this_process()}\n")
        file.flush()
        yield


def _try_flock(descriptor: int) -> OSError | None:
    """Lock an open file or folder without waiting; the error if that fails."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error
    return None


@contextmanager
def _store_lock(folder: RemotePath) -> Iterator[None]:
    lock = _LockFile(folder)
    lock.acquire()
    released = Event()
    holder = threading.get_ident()
    in_main_thread = threading.current_thread() is threading.main_thread()

    def on_loss() -> None:
        if in_main_thread:
            signal.pthread_kill(holder, LOCK_LOST)
        else:
            # Python handles signals in the main thread, which knows nothing of this lock.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(holder), ctypes.py_object(KeyboardInterrupt)
            )

    heartbeat = Thread(target=lock.keep, args=(released, on_loss), daemon=True)
    try:
        before = signal.signal(LOCK_LOST, _interrupt) if in_main_thread else None
        try:
            heartbeat.start()
            yield
        finally:
            released.set()
            heartbeat.join()
            if in_main_thread:
                signal.signal(LOCK_LOST, before)
    finally:
        if lock.lost:
            raise _taken_over(folder, lock.holder()) from None
        lock.release()


class _LockFile:
    """The lock file of a folder in an object store.

    Its first line says, for messages, who holds the folder. The second has a random number, by
    which an owner knows its own file, and counts the heartbeats.

    Attributes:
        lost: Another process has taken over the folder.
    """

    def __init__(self, folder: RemotePath) -> None:
        self.folder = folder
        self.lost = False
        self._file = folder / LOCK_FILE
        self._owner = f"{_this_process()}\n{uuid.uuid4().hex}"

    def acquire(self) -> None:
        """Write the file, once no other owner shows a sign of life.

        Raises:
            UsageError: Another process holds the folder.
        """
        found = self._read()
        deadline = time.monotonic() + SILENCE_S
        while found and time.monotonic() < deadline:
            time.sleep(1)
            if (now := self._read()) and now != found:
                raise _held(self.folder, _first_line(now))
        self._beat(0)
        # Of two that came at the same time, the later writer has won.
        time.sleep(SETTLE_S)
        if not self._is_ours():
            raise _held(self.folder, _first_line(self._read()))

    def keep(self, released: Event, on_loss: Callable[[], None]) -> None:
        """Write heartbeats until the lock is released, or call ``on_loss`` once it is lost."""
        count = 0
        while not released.wait(HEARTBEAT_S):
            count += 1
            # A store that is briefly away is no reason to give up the folder.
            with suppress(OSError):
                if not self._is_ours():
                    self.lost = True
                    on_loss()
                    return
                self._beat(count)

    def release(self) -> None:
        """Delete the file, if it is still ours."""
        with suppress(OSError):
            if self._is_ours():
                self._file.unlink(missing_ok=True)

    def holder(self) -> str:
        """Who holds the folder now, or an empty text."""
        try:
            return _first_line(self._read())
        except OSError:
            return ""

    def _is_ours(self) -> bool:
        return self._read().startswith(self._owner)

    def _beat(self, count: int) -> None:
        atomic_write_text(self._file, f"{self._owner} {count}\n")

    def _read(self) -> str:
        try:
            return self._file.read_text()
        except FileNotFoundError:
            return ""


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    # Ray Train's handler of Ctrl-C stops its workers first.
    on_interrupt = signal.getsignal(signal.SIGINT)
    if callable(on_interrupt):
        on_interrupt(signal.SIGINT, frame)
    raise KeyboardInterrupt


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def _held(folder: AnyPath, holder: str) -> UsageError:
    return UsageError(
        f"{folder}: is in use by another raymed ({holder.strip() or 'starting'}); "
        "wait for it to finish, or choose another run.name"
    )


def _taken_over(folder: AnyPath, holder: str) -> UsageError:
    return UsageError(
        f"{folder}: this command sent no heartbeat for {SILENCE_S:.0f} s, perhaps because the "
        f"machine was suspended, and another raymed ({holder or 'finished by now'}) has taken over "
        "the folder; wait for it to finish, then run the same command again"
    )
