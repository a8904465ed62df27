"""Batches on their way to the device: built in the background, pinned, copied asynchronously."""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import torch

from raymed.data.batches import Batch
from raymed.model.passages import Passages
from raymed.model.system import System

Item = TypeVar("Item")


class TrainingBatch(NamedTuple):
    """A batch, and the passages that a system's decoder learns from its reports."""

    batch: Batch
    passages: Passages


def prefetch_to_device(
    batches: Iterator[Batch], model: System, device: torch.device
) -> Generator[TrainingBatch]:
    """The batches on ``device``; the next one is built while the caller uses one."""

    def built() -> Iterator[TrainingBatch]:
        for batch in batches:
            passages = model.passages(batch.reports)
            if device.type == "cuda":
                batch, passages = batch.pin_memory(), passages.pin_memory()
            yield TrainingBatch(batch, passages)

    for batch, passages in prefetch(built()):
        yield TrainingBatch(batch.to(device), passages.to(device))


def prefetch(items: Iterator[Item]) -> Iterator[Item]:
    """The same items; a thread computes the next one while the caller uses one."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        pending = thread.submit(next, items, end)
        while (item := pending.result()) is not end:
            pending = thread.submit(next, items, end)
            yield item  # type: ignore[misc]
