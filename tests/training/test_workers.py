"""Two data-parallel workers follow the same losses as one: plain torch on gloo, no Ray."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raymed.config import Config
from raymed.training.checkpoint import MODEL_FILE, Row, latest
from raymed.training.loop import TrainingStopped, Worker, train


def worker(rank: int, world: int, configs: dict[str, Config], folder: Path) -> None:
    """Train the runs one after the other, in float64 so that only rounding can differ."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=world
    )
    place = Worker(torch.device("cpu"), rank, world)
    for name, config in configs.items():
        rows: list[Row] = []
        try:
            train(config, folder / name, place, rows.append)
        except TrainingStopped as stopped:
            (folder / f"{name}-stopped-{rank}").write_text(str(stopped))
        torch.save(rows, folder / f"{name}-rows-{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def configs(tiny: Config) -> dict[str, Config]:
    # 24 images: batches of 7, 7, 7, 3; or of 23 and 1, where the second worker has none. Without
    # clipping, because a clipped gradient does not show how it was scaled before.
    uneven = tiny.override({"training.epochs": 2, "training.clip_norm": 1e9})
    assert uneven.model.dropout > 0
    return {
        "uneven": uneven,
        "empty-share": uneven.override({"training.batch_size": 23}),
        "clipped": uneven.override({"training.clip_norm": 0.5}),
        "diverging": uneven.override({"loss.word": 1e308}),
    }


@pytest.fixture(scope="module")
def spawned(configs: dict[str, Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workers")
    mp.spawn(worker, args=(2, configs, folder), nprocs=2)
    return folder


@pytest.mark.parametrize("name", ["uneven", "empty-share", "clipped"])
def test_two_workers_follow_one(
    configs: dict[str, Config],
    spawned: Path,
    tmp_path: Path,
    name: str,
) -> None:
    alone: list[Row] = []
    torch.set_default_dtype(torch.float64)
    try:
        train(configs[name], tmp_path, Worker(torch.device("cpu")), alone.append)
    finally:
        torch.set_default_dtype(torch.float32)
    first, second = (torch.load(spawned / f"{name}-rows-{rank}") for rank in range(2))
    assert len(alone) == len(first) == len(second) == 2
    for one, two, other in zip(alone, first, second, strict=True):
        # Both workers are told the same, the score included.
        score = {key for key in one if key not in ("seconds", "images_per_second")}
        assert {key: two[key] for key in score} == {key: other[key] for key in score}
        for key in score:
            assert two[key] == pytest.approx(one[key], rel=1e-9), key
    folders = latest(tmp_path), latest(spawned / name)
    ours, expected = (safetensors.torch.load_file(f / MODEL_FILE) for f in folders if f)
    for key in expected:
        torch.testing.assert_close(ours[key], expected[key], rtol=1e-7, atol=1e-9)


def test_all_workers_stop_alike_when_training_diverges(spawned: Path) -> None:
    for rank in range(2):
        message = (spawned / f"diverging-stopped-{rank}").read_text()
        assert "training diverged at epoch 1, step 1" in message
