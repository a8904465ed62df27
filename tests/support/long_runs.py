"""A run that lasts long enough to be disturbed, and whether it ended as an undisturbed one."""

import subprocess
import time
from pathlib import Path

import safetensors.torch
import torch

from raymed.config import Config
from raymed.training.checkpoint import MODEL_FILE, latest
from tests.support.metric_rows import rows_of

EPOCHS, STEPS = 12, 12
ENDLESS_S = 480.0


def long_run(tiny: Config, folder: Path, **changes: object) -> Config:
    """A run of many short steps, with a checkpoint every five of them."""
    return tiny.override(
        {
            "training.epochs": EPOCHS,
            "training.batch_size": 2,
            "data.validation_images": 1,
            "launch.checkpoint_steps": 5,
            "launch.max_failures": 9,
            "run.folder": str(folder),
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
    )


def assert_the_same(folder: Path, undisturbed: Path) -> None:
    """Every epoch's metrics, and the last weights and optimiser's state, bit for bit."""
    assert rows_of(folder) == rows_of(undisturbed)
    ours, expected = (latest(each) for each in (folder, undisturbed))
    assert ours is not None
    assert expected is not None
    weights, others = (safetensors.torch.load_file(each / MODEL_FILE) for each in (ours, expected))
    assert all(torch.equal(weights[name], others[name]) for name in others)
    states = [torch.load(each / "optimizer.pt")["state"] for each in (ours, expected)]
    for state, other in zip(states[0].values(), states[1].values(), strict=True):
        assert all(torch.equal(state[key], other[key]) for key in other)


def position(folder: Path) -> tuple[int, int]:
    """Epochs and steps that a run's last checkpoint holds."""
    last = latest(folder)
    if last is None:
        return 0, 0
    epoch, _, step = last.name.removeprefix("epoch-").partition("-step-")
    return (int(epoch) - 1, int(step)) if step else (int(epoch), 0)


def wait_for(folder: Path, epoch: int, step: int, process: "subprocess.Popen[str] | None") -> None:
    until = time.monotonic() + ENDLESS_S
    while position(folder) < (epoch, step):
        assert time.monotonic() < until, f"{folder} does not get to epoch {epoch}"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)
