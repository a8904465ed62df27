"""Writing checkpoints in the background, so that training goes on meanwhile."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from raymed.errors import UsageError


class BackgroundSaver:
    """Writes one thing after the other in a thread of its own; at most one waits to be written.

    Args:
        warn: is told, in the thread, what could not be written and why.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._last: Future[str | None] | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Have a job done once the one before it is; a `UsageError` of the job is a warning."""
        self.wait()
        self._last = self._thread.submit(self._tried, job)

    def wait(self) -> str | None:
        """Wait until all is done; why the last job failed, if it did."""
        return self._last.result() if self._last else None

    def close(self) -> None:
        """Wait until all is done, and end the thread."""
        self._thread.shutdown()

    def _tried(self, job: Callable[[], None]) -> str | None:
        try:
            job()
        except UsageError as error:
            self._warn(str(error))
            return str(error)
        return None
