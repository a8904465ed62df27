"""Work in a thread of its own, as in a notebook or a server."""

import threading
from collections.abc import Callable


def in_thread(work: Callable[[], object]) -> object:
    """What a function returns, or raises, in a thread of its own."""
    found: list[object] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]
