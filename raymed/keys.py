"""What is known about a setting beyond its type: what it affects and whether it is a path.

Each field in `raymed.sections` carries these as metadata of its annotation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from raymed.storage import as_path


class Decides(Enum):
    """What a key affects. Every key has exactly one of these."""

    NOTHING = "nothing"
    """No result: where things are kept and what hardware trains. May change at any time."""
    RUN = "run"
    """The result of a training run. A sweep may search it."""
    SCORE = "score"
    """How long a run trains, and how and on what its score is measured. Like `RUN`, but all trials
    of a sweep share it, since their scores would not be comparable otherwise."""
    SEARCH = "search"
    """Which trials a sweep proposes and stops, and its Optuna study. A single run ignores it."""


@dataclass(frozen=True)
class Locates:
    """The key holds paths.

    Attributes:
        absolute: Maps the value to one with absolute paths; URIs are unchanged.
    """

    absolute: Callable[[Any], Any]


def _absolute(path: str) -> str:
    return str(as_path(path).absolute())


def _weights(name: str) -> str:
    return name if name in ("imagenet", "none") else _absolute(name)


def _runs(runs: dict[str, list[str]]) -> dict[str, list[str]]:
    return {system: [_absolute(run) for run in folders] for system, folders in runs.items()}


def _database(url: str) -> str:
    """A SQLAlchemy URL with the path of a SQLite file made absolute; other URLs unchanged."""
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
