"""Files that are written whole or not at all, and where the cache is."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raymed.errors import UsageError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, to be written in the block; it then takes its place.

    Missing folders are made. Where the block fails, nothing is left and `path` is as it was.

    Raises:
        UsageError: the file cannot be written (no space left, say).
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error})") from error


def cache_folder(*names: str) -> Path:
    """A folder of raymed's cache: below XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "raymed", *names)
