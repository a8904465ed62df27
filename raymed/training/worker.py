"""A data-parallel worker: its rank among the others, and what they agree on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from raymed.errors import UsageError

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Worker:
    """This process as one of ``world`` data-parallel workers.

    Attributes:
        device: Where it computes.
        rank: Its number, from 0.
        world: The number of workers. Above 1, `torch.distributed` must be initialised.
    """

    device: torch.device
    rank: int = 0
    world: int = 1

    def first(self, ask: Callable[[], Answer]) -> Answer:
        """The first worker's result of ``ask``, on every worker.

        Use it for whatever is read from a folder: another node may see an older state of it.

        Raises:
            UsageError: ``ask`` raised it on the first worker. Raised on all of them.
        """
        if self.world == 1:
            return ask()
        sent: list[Any] = [None, None]
        if self.rank == 0:
            try:
                sent[0] = ask()
            except UsageError as error:
                sent[1] = error
        dist.broadcast_object_list(sent)
        if sent[1] is not None:
            raise sent[1]
        answer: Answer = sent[0]
        return answer

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on any worker; the same answer on all of them."""
        if self.world == 1:
            return flag
        flags = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(flags)
        return bool(flags > 0)


def local_device() -> torch.device:
    """Where a process without data-parallel workers computes: its GPU if it has one, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
