"""How preparing distributes its work: a function, applied to many independent pieces."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

Work = TypeVar("Work")
Result = TypeVar("Result")


class Executor(Protocol):
    """Applies a function to pieces of work; the results may come in any order.

    The function writes its output to files and returns little, so no process holds more than one
    piece, and any process can repeat a piece: it writes the same bytes.
    """

    def __call__(
        self, function: Callable[[Work], Result], pieces: Iterable[Work]
    ) -> Iterator[Result]: ...


def in_process(function: Callable[[Work], Result], pieces: Iterable[Work]) -> Iterator[Result]:
    """Process the pieces one after another in this process."""
    return map(function, pieces)
