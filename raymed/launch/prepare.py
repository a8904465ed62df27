"""Preparing on a Ray cluster: Ray Data spreads what `raymed.data.shards` does."""

import logging
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import pyarrow as pa
from rich.console import Console

from raymed.data.prepare_source import prepare_source
from raymed.data.schema import DatasetInfo
from raymed.data.shards import Spread, in_process
from raymed.errors import UsageError
from raymed.launch.cluster import connected
from raymed.sections import PrepareConfig

WINDOW = 64
"""Least pieces of work handed over at a time; what describes them is held in memory."""
_PER_PROCESSOR = 8
ATTEMPTS = 3
"""How many processes may die over one piece."""


def run_prepare(
    source: str, path: str | None, settings: PrepareConfig, console: Console
) -> DatasetInfo:
    """Prepare a source as the settings say, on Ray unless they ask for this process alone.

    The phantom is drawn in this process: drawing is all the work there is.

    Raises:
        UsageError: whatever `prepare_source` raises, or there is no cluster.
    """
    try:
        if settings.workers == 0 or source == "phantom":
            return prepare_source(source, path, settings, console, in_process)
        with connected(settings.address):
            return prepare_source(source, path, settings, console, over_ray(settings.workers))
    except KeyboardInterrupt:
        said = "nothing of the dataset was kept, and the same command begins anew"
        raise KeyboardInterrupt(said) from None


def over_ray(workers: int | None = None) -> Spread:
    """Work done by Ray Data's tasks, each on one processor of the cluster that is connected.

    The calling process takes no processor, so that one is enough.

    Args:
        workers: how many tasks may run at a time; None: as many as there are processors.
    """
    import ray
    from ray.data import DataContext, TaskPoolStrategy

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # It keeps processors back for other steps, and there is one: half of two would lie idle.
    context.op_resource_reservation_enabled = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)

    def spread(do: Callable[[Any], Any], pieces: Iterable[Any]) -> Iterator[Any]:
        processors = int(ray.cluster_resources().get("CPU", 0))
        done = _Done(do, ray.remote(num_cpus=0)(_Attempts).remote())
        for window in _ahead(pieces, max(WINDOW, _PER_PROCESSOR * processors)):
            items = ray.data.from_items(window, override_num_blocks=len(window))
            results = items.map_batches(
                done,
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

    return spread


class _Attempts:
    """How often each piece was begun: Ray Data does one again for ever whose process dies."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        self._begun[number] += 1
        return self._begun[number]


class _Done:
    """Does the pieces of a batch; their errors come back as they are, not in Ray's wrapping."""

    def __init__(self, do: Callable[[Any], Any], attempts: Any) -> None:
        self._do = do
        self._attempts = attempts

    def __call__(self, batch: pa.Table) -> pa.Table:
        results = [pickle.dumps(self._result(**row)) for row in batch.to_pylist()]
        return pa.table({"result": pa.array(results, pa.binary())})

    def _result(self, number: int, piece: bytes) -> Any:
        import ray

        if ray.get(self._attempts.begin.remote(number)) > ATTEMPTS:
            return UsageError(
                f"{ATTEMPTS} processes died over the same piece of the work. If memory ran out, "
                "give fewer workers; or prepare with workers=0 to see what happens"
            )
        try:
            return self._do(pickle.loads(piece))
        except (UsageError, OSError) as error:
            return error


def _ahead(pieces: Iterable[Any], size: int) -> Iterator[list[dict[str, Any]]]:
    """Numbered pieces in lists of ``size``; the next is made while the caller uses one."""
    numbered = (
        {"number": number, "piece": pickle.dumps(piece)} for number, piece in enumerate(pieces)
    )
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(lambda: list(islice(numbered, size)))
        while window := coming.result():
            coming = thread.submit(lambda: list(islice(numbered, size)))
            yield window
