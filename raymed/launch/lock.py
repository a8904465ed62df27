"""One command at a time on a folder."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raymed.errors import UsageError

LOCK_FILE = ".lock"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder inside the block; it is let go by the system itself where the process dies.

    Raises:
        UsageError: another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK_FILE).open("a+")
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise UsageError(
                f"{folder}: another raymed works on it ({file.read().strip() or 'starting'}); "
                "wait for its end, or choose another run.name"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
