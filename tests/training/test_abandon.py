"""An abandoned step: nothing of it remains, and nothing before it is lost."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from raymed.config import Config
from raymed.training import abandon
from raymed.training.checkpoint import latest
from raymed.training.checkpoint_paths import checkpoints_of
from raymed.training.errors import Interrupted
from raymed.training.loop import train
from raymed.training.observer import Row, Status
from raymed.training.worker import Worker
from tests.support.metric_rows import untimed
from tests.support.recording import Recorder

ALONE = Worker(torch.device("cpu"))


class EndsWithinAStep(Recorder):
    """Asks the run to stop after ``asks`` checks within the step that follows a given one."""

    def __init__(self, epoch: int, step: int, asks: int) -> None:
        super().__init__(at_step=self.reached)
        self.epoch_and_step, self.asks, self.counting = (epoch, step), asks, (epoch, step) == (1, 0)

    def reached(self, status: Status) -> bool:
        self.counting = (status.epoch, status.done) == self.epoch_and_step
        return False

    def ending(self) -> bool:
        self.asks -= self.counting
        return self.asks < 0


def weights(folder: Path) -> dict[str, Tensor]:
    last = latest(folder)
    assert last is not None
    return torch.load(last / "optimizer.pt", weights_only=True)["state"]


@pytest.mark.parametrize(
    ("epoch", "step", "left"),
    [
        (1, 0, []),
        (1, 2, ["epoch-0001-step-000002"]),
        (2, 3, ["epoch-0001", "epoch-0002-step-000003"]),
    ],
)
@pytest.mark.parametrize("asks", [3, 20], ids=["forward", "backward"])
def test_a_run_resumed_after_an_abandoned_step_ends_where_the_uninterrupted_one_ends(
    tiny: Config,
    whole: tuple[Path, list[Row]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    epoch: int,
    step: int,
    left: list[str],
    asks: int,
) -> None:
    observer = EndsWithinAStep(epoch, step, asks)
    monkeypatch.setattr(abandon, "INTERVAL_S", 0)
    with pytest.raises(Interrupted):
        train(tiny, tmp_path, ALONE, observer)
    assert observer.counting
    assert (observer.statuses[-1].done if observer.statuses else 0) == step
    names = sorted(path.name for path in checkpoints_of(tmp_path).glob("epoch-*"))
    assert names == left
    recorder = Recorder()
    train(tiny, tmp_path, ALONE, recorder)
    assert untimed([*observer.rows, *recorder.rows]) == untimed(whole[1])
    ours, expected = weights(tmp_path), weights(whole[0])
    assert all(
        torch.equal(ours[key][name], expected[key][name]) for key in expected for name in ours[key]
    )
