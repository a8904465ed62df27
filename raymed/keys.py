"""What is known of a configuration key beside its type: what depends on it, and if it is a path.

Each key's field in `raymed.sections` carries these as metadata of its annotation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from raymed.storage import place


class Decides(Enum):
    """What depends on a key. Every key has one of these."""

    NOTHING = "nothing"
    """No result: where things are kept and who trains them. May differ each time."""
    RUN = "run"
    """What a training run gives. A sweep may search it."""
    SCORE = "score"
    """How long a run trains, and what its score is measured on and how: what `RUN` is, but all
    trials of a sweep share it, since their scores would not be comparable."""
    SEARCH = "search"
    """Which trials a sweep proposes and stops, and which study it is. A single run ignores it."""


@dataclass(frozen=True)
class Locates:
    """The key holds paths.

    Attributes:
        absolute: from the key's value to the same with absolute paths; URIs stay.
    """

    absolute: Callable[[Any], Any]


def _absolute(path: str) -> str:
    return str(place(path).absolute())


def _weights(name: str) -> str:
    return name if name in ("imagenet", "none") else _absolute(name)


def _runs(runs: dict[str, list[str]]) -> dict[str, list[str]]:
    return {system: [_absolute(run) for run in folders] for system, folders in runs.items()}


def _database(url: str) -> str:
    """A relative SQLite file as SQLAlchemy takes it; another database's URL as it is."""
    scheme, separator, path = url.partition(":///")
    if not (separator and path and scheme.startswith("sqlite")) or path.startswith(
        ("/", ":memory:", "file:")
    ):
        return url
    return f"{scheme}:///{_absolute(path)}"


IS_PATH = Locates(_absolute)
IS_WEIGHTS = Locates(_weights)
ARE_RUNS = Locates(_runs)
IS_DATABASE = Locates(_database)
