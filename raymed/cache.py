"""The cache's folder."""

import os
from pathlib import Path


def cache_folder(*names: str) -> Path:
    """A folder in raymed's cache, below XDG_CACHE_HOME or ~/.cache.

    Raises:
        RuntimeError: The user has no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "raymed", *names)
