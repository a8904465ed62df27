"""Batches on their way to the device: made in the background, pinned, copied while it computes."""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import torch

from raymed.data.batches import Batch
from raymed.model.passages import Passages
from raymed.model.system import System

Item = TypeVar("Item")


class TrainingBatch(NamedTuple):
    """A batch, and what a system's writer is taught by its reports."""

    batch: Batch
    passages: Passages


def prefetch_to_device(
    batches: Iterator[Batch], model: System, device: torch.device
) -> Generator[TrainingBatch]:
    """The batches on the device of the model; the next one is made meanwhile."""

    def made() -> Iterator[TrainingBatch]:
        for batch in batches:
            passages = model.passages(batch.reports)
            if device.type == "cuda":
                batch, passages = batch.pin_memory(), passages.pin_memory()
            yield TrainingBatch(batch, passages)

    for batch, passages in prefetch(made()):
        yield TrainingBatch(batch.to(device), passages.to(device))


def prefetch(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, the next one of which is made in a thread while the caller uses one."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item  # type: ignore[misc]
