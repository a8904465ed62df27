"""The running sums of an epoch's losses, read from the device only now and then.

Reading makes the host wait until the device has finished all its work.
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor

from raymed.training.worker import Worker


class LossMeter:
    """Keeps each step's sums on the device until they are fetched, and adds up all workers'.

    Args:
        worker: This worker.
        sums: Sums of the loss and its terms over the epoch's images so far.

    Attributes:
        sums: The same sums, up to the last `reduce`.
        diverged: The first step whose gradient was not finite, with the mean loss and terms of
            that step; None if there was none.
    """

    def __init__(self, worker: Worker, sums: list[float]) -> None:
        self.worker = worker
        self.sums = list(sums)
        self.diverged: tuple[int, list[float]] | None = None
        self._steps: list[int] = []
        self._pending: list[Tensor] = []
        self._fetched = torch.empty(0)

    def add(self, step: int, sums: Tensor, norm: Tensor) -> None:
        """Add a step, without waiting for the device.

        Args:
            step: Its number in the epoch, from 1.
            sums: This worker's sums of loss, terms and measures, and its number of images,
                [1 + terms + measures + 1].
            norm: The gradient's norm, a scalar; the same on all workers.
        """
        self._steps.append(step)
        self._pending.append(torch.cat([sums, norm.detach().reshape(1)]))

    def fetch(self) -> float:
        """Wait for the device; the mean loss of this worker's images at the last step."""
        self._fetched = torch.stack(self._pending).double().cpu()
        loss, *_, images, _ = self._fetched[-1].tolist()
        return loss / max(images, 1)

    def reduce(self, flag: bool) -> bool:
        """Add what was fetched to the sums, over all workers; whether any of them set ``flag``."""
        values = self._fetched
        if self.worker.world > 1:
            both = torch.cat([values.flatten(), values.new_tensor([float(flag)])])
            both = both.to(self.worker.device)
            dist.all_reduce(both)
            values, flag = both[:-1].view_as(values).cpu(), bool(both[-1] > 0)
        for step, (*sums, images, norm) in zip(self._steps, values.tolist(), strict=True):
            if self.diverged is None and not math.isfinite(norm):
                self.diverged = step, [each / images for each in sums]
            self.sums = [before + each for before, each in zip(self.sums, sums, strict=True)]
        self._steps, self._pending = [], []
        return flag
