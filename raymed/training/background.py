"""Saving in a background thread while training continues."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from raymed.errors import UsageError


class BackgroundSaver:
    """Runs one save after the other in its own thread; at most one is pending.

    Args:
        warn: Called from that thread with the message of a save that failed.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._last: Future[str | None] | None = None

    def submit(self, save: Callable[[], None]) -> None:
        """Run ``save`` once the one before it has finished; its `UsageError` becomes a warning."""
        self.wait()
        self._last = self._thread.submit(self._run, save)

    def wait(self) -> str | None:
        """Wait for the pending save; the message of the last one if it failed."""
        return self._last.result() if self._last else None

    def close(self) -> None:
        """Wait for the pending save and stop the thread."""
        self._thread.shutdown()

    def _run(self, save: Callable[[], None]) -> str | None:
        try:
            save()
        except UsageError as error:
            self._warn(str(error))
            return str(error)
        return None
