"""Where the cache is."""

import os
from pathlib import Path


def cache_folder(*names: str) -> Path:
    """A folder of raymed's cache: below XDG_CACHE_HOME, or ~/.cache.

    Raises:
        RuntimeError: there is no home.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "raymed", *names)
