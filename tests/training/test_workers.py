"""Two data-parallel workers follow the same losses as one: plain torch on gloo, no Ray."""

import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.errors import UsageError
from raymed.training import features, loop
from raymed.training.checkpoint import MODEL_FILE, Checkpoint, latest
from raymed.training.errors import Interrupted, TrainingFailed
from raymed.training.loop import train
from raymed.training.observer import Row, Status
from raymed.training.setup import set_up
from raymed.training.worker import Worker
from tests.support.metric_rows import TIMES
from tests.support.prepared import prepare_phantom
from tests.support.recording import Recorder
from tests.support.study_films import prepare_studies


def worker(rank: int, world: int, configs: dict[str, Config], folder: Path) -> None:
    """Train the runs one after the other, in float64 so that only rounding can differ."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=world
    )
    place = Worker(torch.device("cpu"), rank, world)
    for name, config in configs.items():
        recorder = Recorder()
        try:
            train(config, folder / name, place, recorder)
        except TrainingFailed as stopped:
            (folder / f"{name}-stopped-{rank}").write_text(str(stopped))
        torch.save(recorder.rows, folder / f"{name}-rows-{rank}")
        # Also while features are computed, or training would seem to have other workers.
        assert {status.workers for status in recorder.statuses} <= {world}
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def configs(
    tiny: Config, whole: tuple[Path, list[Row]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Config]:
    studies = tmp_path_factory.mktemp("studies") / "prepared"
    prepare_studies(studies, 20)
    # 24 images: batches of 7, 7, 7, 3; or of 23 and 1, where the second worker has none. Without
    # clipping, because a clipped gradient does not show how it was scaled before.
    uneven = tiny.override({"training.epochs": 2, "training.clip_norm": 1e9})
    assert uneven.model.dropout > 0
    return {
        "uneven": uneven,
        "empty-share": uneven.override({"training.batch_size": 23}),
        "clipped": uneven.override({"training.clip_norm": 0.5}),
        # Of three validation images; or of one, where the second worker has none to write of.
        "free": uneven.override({"tune.free_threshold": True, "tune.free_top_tags": True}),
        "one-image": uneven.override({"data.validation_images": 1}),
        "frozen": uneven.override({"model.train_encoder": "none"}),
        "self-critical": uneven.override(
            {"training.objective": "cider", "training.start_from": str(whole[0])}
        ),
        "studies": uneven.override(
            {
                "data.path": str(studies),
                "data.images_per_study": 2,
                "augmentation.contrast": 0.2,
                "tune.free_top_tags": True,
            }
        ),
        "diverging": uneven.override({"loss.word": 1e308}),
    }


@pytest.fixture(scope="module")
def spawned(configs: dict[str, Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workers")
    mp.spawn(worker, args=(2, configs, folder), nprocs=2)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        *("uneven", "empty-share", "clipped", "free", "one-image", "frozen", "self-critical"),
        "studies",
    ],
)
def test_two_workers_follow_one(
    configs: dict[str, Config],
    spawned: Path,
    tmp_path: Path,
    name: str,
) -> None:
    recorder = Recorder()
    torch.set_default_dtype(torch.float64)
    try:
        train(configs[name], tmp_path, Worker(torch.device("cpu")), recorder)
    finally:
        torch.set_default_dtype(torch.float32)
    alone = recorder.rows
    first, second = (torch.load(spawned / f"{name}-rows-{rank}") for rank in range(2))
    assert len(alone) == len(first) == len(second) == 2
    for one, two, other in zip(alone, first, second, strict=True):
        # Both workers have the same row, the score included.
        score = {key for key in one if key not in TIMES}
        assert {key: two[key] for key in score} == {key: other[key] for key in score}
        assert two["seconds_per_report"] == other["seconds_per_report"] > 0
        for key in score:
            assert two[key] == pytest.approx(one[key], rel=1e-9), key
    folders = latest(tmp_path), latest(spawned / name)
    ours, expected = (safetensors.torch.load_file(f / MODEL_FILE) for f in folders if f)
    for key in expected:
        torch.testing.assert_close(ours[key], expected[key], rtol=1e-7, atol=1e-9)
    one, two = (Checkpoint.open(f) for f in folders if f)
    assert len(two.curve) == len(one.curve) > 18
    for point, expected_point in zip(two.curve, one.curve, strict=True):
        assert point == pytest.approx(expected_point, rel=1e-9)
    ends = two.config.generation.stop_threshold, two.config.model.top_tags
    assert ends == (one.config.generation.stop_threshold, one.config.model.top_tags)


def test_all_workers_stop_alike_when_training_diverges(spawned: Path) -> None:
    for rank in range(2):
        message = (spawned / f"diverging-stopped-{rank}").read_text()
        assert "training diverged at epoch 1, step 1" in message


@pytest.mark.slow
def test_more_workers_than_studies(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prepare_phantom(tmp_path / "few", 5)
    few = tiny.override({"data.path": str(tmp_path / "few"), "training.clip_norm": 1e9})
    assert PreparedDataset.open(few.data.path).info.counts == {"train": 3, "val": 1, "test": 1}
    # Three images among five workers: some have none at any step.
    configs = {
        "one-batch": few,
        "small-batches": few.override({"training.batch_size": 2, "launch.checkpoint_steps": 1}),
        "frozen": few.override({"model.train_encoder": "none"}),
    }
    mp.spawn(worker, args=(5, configs, tmp_path), nprocs=5)
    torch.set_default_dtype(torch.float64)
    try:
        for name, config in configs.items():
            recorder = Recorder()
            train(config, tmp_path / f"{name}-alone", Worker(torch.device("cpu")), recorder)
            for rank in range(5):
                rows = torch.load(tmp_path / f"{name}-rows-{rank}")
                for row, expected in zip(rows, recorder.rows, strict=True):
                    for key in set(expected) - set(TIMES):
                        assert row[key] == pytest.approx(expected[key], rel=1e-9), (name, key)
    finally:
        torch.set_default_dtype(torch.float32)


def leaving_worker(rank: int, world: int, config: Config, folder: Path) -> None:
    """Train a run that is ended through its second worker: among the features, in a validation."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=world
    )
    place = Worker(torch.device("cpu"), rank, world)
    step, features.STEP = features.STEP, 1
    asked = folder / "asked"

    def ask_among_features(status: Status) -> bool:
        # The first worker has the 24 images of the first file before it, and waits in them.
        if rank == 0 and status.done == 1:
            while not asked.exists():
                time.sleep(0.01)
        elif rank == 1 and status.done == 1:
            asked.touch()
            return True
        return False

    with pytest.raises(Interrupted):
        train(config, folder / "run", place, Recorder(at_step=ask_among_features))
    features.STEP = step
    made = [*Path(os.environ["XDG_CACHE_HOME"]).glob("raymed/features/*/*.arrow")]
    (folder / f"made-{rank}").write_text(str(len(made)))
    dist.barrier()

    recorder, real = Recorder(), loop.validate

    def asked_in_validation(*arguments: Any) -> Any:
        recorder.ends = rank == 1
        return real(*arguments)

    loop.validate = asked_in_validation
    with pytest.raises(Interrupted):
        train(config, folder / "run", place, recorder)
    loop.validate = real
    last = latest(folder / "run")
    assert last is not None
    assert last.name == "epoch-0001-step-000004"
    resumed = Recorder()
    train(config, folder / "run", place, resumed)
    torch.save(resumed.rows, folder / f"rows-{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_all_workers_stop_when_one_is_asked_to(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = tiny.override({"model.train_encoder": "none", "training.clip_norm": 1e9})
    mp.spawn(leaving_worker, args=(2, config, tmp_path), nprocs=2)
    assert [(tmp_path / f"made-{rank}").read_text() for rank in range(2)] == ["0", "0"]
    recorder = Recorder()
    train(config, tmp_path / "alone", Worker(torch.device("cpu")), recorder)
    for rank in range(2):
        rows = torch.load(tmp_path / f"rows-{rank}")
        assert [row["epoch"] for row in rows] == [1, 2, 3]
        for row, expected in zip(rows, recorder.rows, strict=True):
            assert row["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def interrupted_worker(rank: int, world: int, config: Config, folder: Path) -> None:
    """Train a run in one go, and another that is ended twice within an epoch."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=world
    )
    place = Worker(torch.device("cpu"), rank, world)
    train(config, folder / "whole", place, Recorder())
    for end in ((1, 2), (2, 3)):
        recorder = Recorder(at_step=lambda status, end=end: (status.epoch, status.done) == end)
        with pytest.raises(Interrupted):
            train(config, folder / "interrupted", place, recorder)
    train(config, folder / "interrupted", place, Recorder())

    with pytest.raises(Interrupted):
        train(
            config,
            folder / "stale",
            place,
            Recorder(at_step=lambda status: status.epoch == 2),
        )
    # Another node may see the folder as it was: without checkpoints, say.
    old_state = patch("raymed.training.setup.latest", lambda _: None) if rank else nullcontext()
    with old_state:
        train(config, folder / "stale", place, Recorder())
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["interrupted", "stale"])
def test_three_workers_that_are_resumed_end_bit_for_bit(resumed_by_three: Path, name: str) -> None:
    folders = latest(resumed_by_three / name), latest(resumed_by_three / "whole")
    ours, expected = (safetensors.torch.load_file(f / MODEL_FILE) for f in folders if f)
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


@pytest.fixture(scope="module")
def resumed_by_three(tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    # The sum of two numbers is the same in any order, that of three is not.
    wide = tiny.override({"model.hidden_size": 64, "model.embedding_size": 64})
    mp.spawn(interrupted_worker, args=(3, wide, folder), nprocs=3)
    return folder


class SecondWorker(Worker):
    """A second worker, which receives the first one's answer."""

    answer: ClassVar[Any] = None

    def first(self, ask: Any) -> Any:
        return self.answer if self.answer is not None else ask()


def test_another_dataset_on_another_node_is_rejected(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SecondWorker, "answer", "0123456789abcdef")
    second = SecondWorker(torch.device("cpu"), rank=1, world=2)
    with pytest.raises(UsageError, match=r"worker 1 finds different content there .*0123456789ab"):
        set_up(tiny, tmp_path, second, Recorder())
