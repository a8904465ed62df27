"""Preparing a dataset on a Ray cluster, with Ray Data."""

import logging
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import pyarrow as pa
from rich.console import Console

from raymed.data.prepare import prepare_source
from raymed.data.schema import DatasetInfo
from raymed.data.sources import load_source
from raymed.data.work import Executor, in_process
from raymed.errors import UsageError
from raymed.launch.cluster import connected
from raymed.sections import PrepareConfig

WINDOW = 64
"""Minimum pieces of work to submit at a time; their descriptions are held in memory."""
_PIECES_PER_CPU = 8
_WINDOW_BYTES = 256 * 2**20
"""Size of the descriptions at which a window ends early: images stored in a table are in them."""
ATTEMPTS = 3
"""How many processes may die while processing one piece."""


def run_prepare(
    source: str, path: str | None, settings: PrepareConfig, console: Console
) -> DatasetInfo:
    """Prepare a registered source, on Ray unless ``workers`` is 0.

    A source without a path generates its images in this process, which is most of the work, so it
    does not use Ray.

    Raises:
        UsageError: Whatever `prepare_source` raises, or there is no cluster.
    """
    try:
        if settings.workers == 0 or not load_source(source).path:
            return prepare_source(source, path, settings, console, in_process)
        with connected(settings.address):
            return prepare_source(source, path, settings, console, on_ray(settings.workers))
    except KeyboardInterrupt:
        outcome = "no part of the dataset was kept; run the same command to start again"
        raise KeyboardInterrupt(outcome) from None


def on_ray(workers: int | None = None) -> Executor:
    """Return an executor that runs Ray Data tasks on the connected cluster, one CPU each.

    The calling process reserves no CPU, so a cluster with a single CPU is enough.

    Args:
        workers: Maximum number of concurrent tasks; None: the number of CPUs.
    """
    import ray
    from ray.data import DataContext, TaskPoolStrategy

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # It reserves CPUs for other operators, but there is only one: half of two CPUs would be idle.
    context.op_resource_reservation_enabled = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)

    def execute(function: Callable[[Any], Any], pieces: Iterable[Any]) -> Iterator[Any]:
        cpus = int(ray.cluster_resources().get("CPU", 0))
        task = _Task(function, ray.remote(num_cpus=0)(_Attempts).remote())
        for window in _windows(pieces, max(WINDOW, _PIECES_PER_CPU * cpus)):
            items = ray.data.from_items(window, override_num_blocks=len(window))
            results = items.map_batches(
                task,
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=1,
                compute=TaskPoolStrategy(workers),
            )
            for row in results.iter_rows():
                result = pickle.loads(row["result"])
                if isinstance(result, UsageError | OSError):
                    raise result
                yield result

    return execute


class _Attempts:
    """Counts the attempts at each piece, because Ray Data retries forever if a process dies."""

    def __init__(self) -> None:
        self._attempts: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        self._attempts[number] += 1
        return self._attempts[number]


class _Task:
    """Processes pieces of work, and returns errors as values so that Ray does not wrap them."""

    def __init__(self, function: Callable[[Any], Any], attempts: Any) -> None:
        self._function = function
        self._attempts = attempts

    def __call__(self, batch: pa.Table) -> pa.Table:
        results = [pickle.dumps(self._result(**row)) for row in batch.to_pylist()]
        return pa.table({"result": pa.array(results, pa.binary())})

    def _result(self, number: int, piece: bytes) -> Any:
        import ray

        if ray.get(self._attempts.begin.remote(number)) > ATTEMPTS:
            return UsageError(
                f"{ATTEMPTS} processes died while processing the same images. If memory ran out, "
                "use fewer workers; or use workers=0 to see the cause"
            )
        try:
            return self._function(pickle.loads(piece))
        except (UsageError, OSError) as error:
            return error


def _windows(pieces: Iterable[Any], size: int) -> Iterator[list[dict[str, Any]]]:
    """Yield up to ``size`` numbered pieces at a time, preparing the next ones in the background."""
    numbered = enumerate(map(pickle.dumps, pieces))

    def next_window() -> list[dict[str, Any]]:
        window, left = [], _WINDOW_BYTES
        for number, piece in islice(numbered, size):
            window.append({"number": number, "piece": piece})
            left -= len(piece)
            if left <= 0:
                break
        return window

    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next_window)
        while window := following.result():
            following = thread.submit(next_window)
            yield window
