"""Batches on their way to the device: made in the background, pinned, copied while it computes."""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import torch

from raymed.data.batches import Batch
from raymed.model.passages import Passages
from raymed.model.system import System

Item = TypeVar("Item")


class Taught(NamedTuple):
    """A batch, and what a system's writer is taught by its reports."""

    batch: Batch
    passages: Passages


def fed(batches: Iterator[Batch], model: System, device: torch.device) -> Generator[Taught]:
    """The batches on the device of the model; the next one is made meanwhile."""

    def made() -> Iterator[Taught]:
        for batch in batches:
            passages = model.passages(batch.reports)
            if device.type == "cuda":
                batch, passages = batch.pin_memory(), passages.pin_memory()
            yield Taught(batch, passages)

    for batch, passages in ahead(made()):
        yield Taught(batch.to(device), passages.to(device))


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, the next one of which is made in a thread while the caller uses one."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item  # type: ignore[misc]
