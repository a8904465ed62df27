"""Several workers that leave off their own work all at once, without one waiting for another's."""

import torch
import torch.distributed as dist

from raymed.training.worker import Worker


class InterruptVote:
    """Whether one of a run's workers is to end, answered alike on all of them.

    Each takes part in one round of sums after the other as it gets to it, and goes on working while
    a round lacks others. What a round says is the same for all.

    Args:
        worker: this one.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.sums = torch.zeros(2, device=worker.device)
        self.round: dist.Work | None = None

    def ended(self, ending: bool) -> bool:
        """Asked between two pieces of work: whether all are to end now. Waits only to end."""
        if ending or self.worker.world == 1:
            return self.over(ending)
        if self.round is not None and not self.round.is_completed():
            return False
        if self._ended():
            return True
        self._begin(ending=False, done=False)
        return False

    def over(self, ending: bool) -> bool:
        """Wait until all have done their work, or one is to end: whether it is the latter."""
        if self.worker.world == 1:
            return ending
        while True:
            if self._ended():
                return True
            if self.sums[1] == self.worker.world:
                return False
            self._begin(ending, done=not ending)

    def _begin(self, ending: bool, done: bool) -> None:
        self.sums = torch.tensor([float(ending), float(done)], device=self.worker.device)
        self.round = dist.all_reduce(self.sums, async_op=True)

    def _ended(self) -> bool:
        """Whether the last round, once all have taken part in it, says so."""
        if self.round is None:
            return False
        self.round.wait()
        return bool(self.sums[0] > 0)
