"""Reading what steps gave from the device: seldom, because whoever reads waits for it."""

import math

import torch
import torch.distributed as dist
from torch import Tensor

from raymed.training.worker import Worker


class LossMeter:
    """Keeps each step's sums on the device until they are read, and adds up all workers'.

    Args:
        worker: whose steps they are.
        sums: of the loss and its terms over the epoch's images so far.

    Attributes:
        sums: likewise, up to the last reading.
        diverged: the first step whose gradient was not finite, and the means of its loss and
            terms; None while there is none.
    """

    def __init__(self, worker: Worker, sums: list[float]) -> None:
        self.worker = worker
        self.sums = list(sums)
        self.diverged: tuple[int, list[float]] | None = None
        self._steps: list[int] = []
        self._unread: list[Tensor] = []
        self._values = torch.empty(0)

    def add(self, step: int, sums: Tensor, norm: Tensor) -> None:
        """Of a step: loss, terms and number of this worker's images, [1 + terms + 1]; and the
        gradient's norm, which is the same on all workers."""
        self._steps.append(step)
        self._unread.append(torch.cat([sums, norm.detach().reshape(1)]))

    def read(self) -> float:
        """Wait for the device; the mean loss of this worker's images at the last step."""
        self._values = torch.stack(self._unread).double().cpu()
        loss, *_, images, _ = self._values[-1].tolist()
        return loss / max(images, 1)

    def share(self, ending: bool) -> bool:
        """Add up what was read, over all workers; whether any of them is to end."""
        values = self._values
        if self.worker.world > 1:
            both = torch.cat([values.flatten(), values.new_tensor([float(ending)])])
            both = both.to(self.worker.device)
            dist.all_reduce(both)
            values, ending = both[:-1].view_as(values).cpu(), bool(both[-1] > 0)
        for step, (*sums, images, norm) in zip(self._steps, values.tolist(), strict=True):
            if self.diverged is None and not math.isfinite(norm):
                self.diverged = step, [each / images for each in sums]
            self.sums = [before + each for before, each in zip(self.sums, sums, strict=True)]
        self._steps, self._unread = [], []
        return ending
