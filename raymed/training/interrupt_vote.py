"""A vote among workers on whether to stop, held while each does work of its own.

Unlike `Worker.any`, it does not make a worker wait for the others unless they are to stop.
"""

import torch
import torch.distributed as dist

from raymed.training.worker import Worker


class InterruptVote:
    """Whether any of a run's workers is asked to stop, answered alike on all of them.

    The vote is a series of asynchronous all-reduces. Each worker joins a round when it gets to it
    and keeps working while the round still lacks others.

    Args:
        worker: This worker.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.sums = torch.zeros(2, device=worker.device)
        self.round: dist.Work | None = None

    def poll(self, asked: bool) -> bool:
        """Between two pieces of work: whether all are to stop now. Waits only if so.

        Args:
            asked: Whether this worker is asked to stop.
        """
        if asked or self.worker.world == 1:
            return self.finish(asked)
        if self.round is not None and not self.round.is_completed():
            return False
        if self._stopping():
            return True
        self._start(asked=False, done=False)
        return False

    def finish(self, asked: bool) -> bool:
        """Wait until all workers are done or one is asked to stop; whether it is the latter."""
        if self.worker.world == 1:
            return asked
        while True:
            if self._stopping():
                return True
            if self.sums[1] == self.worker.world:
                return False
            self._start(asked, done=not asked)

    def _start(self, asked: bool, done: bool) -> None:
        self.sums = torch.tensor([float(asked), float(done)], device=self.worker.device)
        self.round = dist.all_reduce(self.sums, async_op=True)

    def _stopping(self) -> bool:
        """Wait for the last round; whether a worker in it was asked to stop."""
        if self.round is None:
            return False
        self.round.wait()
        return bool(self.sums[0] > 0)
