"""Locks between the processes of one machine; the system ends a lock with its holder."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def file_lock(file: Path) -> Iterator[None]:
    """Hold a lock file inside the block; whoever else wants it waits.

    Missing folders are made.

    Raises:
        OSError: the file cannot be made, or its disk has no locks.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
