"""A disk that is really full: a small tmpfs, which gets room again."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from raymed.config import Config
from raymed.training.checkpoint import MODEL_FILE, Checkpoint, latest, whole_checkpoints
from raymed.training.errors import TrainingFailed
from raymed.training.loop import train
from raymed.training.observer import Row
from raymed.training.worker import Worker
from tests.support.metric_rows import rows_of, untimed
from tests.support.recording import Recorder

ALONE = Worker(torch.device("cpu"))


class Disk:
    """A file system of its own, of a size that may be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, size: int) -> None:
        mounted = self.folder.is_mount()
        command = ["mount", "-o", f"{'remount,' if mounted else ''}size={size}"]
        command += [] if mounted else ["-t", "tmpfs", "tmpfs"]
        done = subprocess.run(
            [*command, str(self.folder)], capture_output=True, text=True, check=False
        )
        if done.returncode and not mounted:
            pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    yield Disk(folder)
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


def size_of(checkpoint: Path) -> int:
    return sum(file.stat().st_size for file in checkpoint.iterdir())


def assert_as_on_a_disk_with_room(folder: Path, whole: tuple[Path, list[Row]]) -> None:
    assert rows_of(folder) == untimed(whole[1])
    ours, expected_weights = (
        safetensors.torch.load_file(last / MODEL_FILE)
        for last in map(latest, (folder, whole[0]))
        if last
    )
    assert all(torch.equal(ours[name], expected_weights[name]) for name in expected_weights)


def test_a_disk_that_fills_up_and_has_space_again(
    tiny: Config, disk: Disk, whole: tuple[Path, list[Row]]
) -> None:
    one = size_of(whole_checkpoints(whole[0])[-1])
    disk.has(round(1.7 * one))

    def make_room(row: Row) -> None:
        if row["epoch"] == 2:
            until = time.monotonic() + 60
            while not recorder.warnings and time.monotonic() < until:
                time.sleep(0.02)
            disk.has(9 * one)

    recorder = Recorder(make_room)
    train(tiny, disk.folder, ALONE, recorder)
    first = recorder.warnings[0]
    assert first.startswith(f"{disk.folder}/checkpoints/epoch-0002: the checkpoint could not be")
    assert "(no space left); the previous one is intact. Free some space" in first
    assert not any("epoch-0003" in text for text in recorder.warnings)
    assert [path.name for path in whole_checkpoints(disk.folder)] == ["epoch-0001", "epoch-0003"]
    assert_as_on_a_disk_with_room(disk.folder, whole)


def test_a_run_that_ends_on_a_full_disk_reports_it_and_resumes_once_there_is_space(
    tiny: Config, disk: Disk, whole: tuple[Path, list[Row]]
) -> None:
    one = size_of(whole_checkpoints(whole[0])[-1])
    disk.has(round(1.7 * one))
    with pytest.raises(TrainingFailed, match=r"epoch-0003: .*no space left"):
        train(tiny, disk.folder, ALONE, Recorder())
    (left,) = whole_checkpoints(disk.folder)
    assert left.name == "epoch-0001"
    assert Checkpoint.open(left).build_model()
    assert not list((disk.folder / "checkpoints").glob("epoch-000[23]"))
    disk.has(9 * one)
    train(tiny, disk.folder, ALONE, Recorder())
    assert_as_on_a_disk_with_room(disk.folder, whole)
