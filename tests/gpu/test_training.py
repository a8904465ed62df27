"""Training, resuming, scoring and memory on one GPU, and on two."""

import gc
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.evaluation import evaluate
from raymed.model.systems import SYSTEMS
from raymed.prediction import predict_rows
from raymed.predictions_file import PREDICTIONS_FILE
from raymed.training.checkpoint import MODEL_FILE, Checkpoint, latest
from raymed.training.errors import Interrupted
from raymed.training.loop import train
from raymed.training.precision import computes_bfloat16
from raymed.training.worker import Worker
from tests.support.recording import Recorder


def trained(config: Config, folder: Path, device: torch.device) -> Recorder:
    recorder = Recorder()
    train(config, folder, Worker(device), recorder)
    return recorder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    last = latest(folder)
    assert last is not None
    return safetensors.torch.load_file(last / MODEL_FILE)


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_trains_is_scored_and_predicts(
    on_gpu: Config, device: torch.device, tmp_path: Path, system: str
) -> None:
    config = on_gpu.override({"model.system": system, "training.epochs": 1})
    (row,) = trained(config, tmp_path, device).rows
    checkpoint = Checkpoint.open(tmp_path)
    expected = torch.bfloat16 if computes_bfloat16(device) else torch.float32
    assert checkpoint.precision == expected
    evaluation = evaluate(checkpoint, checkpoint.config, "val", tmp_path / "val")
    scores = evaluation.rows[system]
    assert scores["recall_5"] == pytest.approx(row["recall_5"])
    if system == "vgg19_tags":
        return
    assert scores["cider"] == pytest.approx(row["cider"])
    written = pq.read_table(tmp_path / "val" / PREDICTIONS_FILE)["sentences"].to_pylist()
    split = PreparedDataset.open(config.data.path).split("val")
    rows = list(range(len(split)))
    predicted = list(predict_rows(checkpoint, checkpoint.config, split, rows, tmp_path))
    assert [prediction.report.sentences for prediction in predicted] == written


def test_losses_follow_those_of_a_cpu(on_gpu: Config, device: torch.device, tmp_path: Path) -> None:
    config = on_gpu.override({"training.precision": "float32"})
    ours = trained(config, tmp_path / "gpu", device).rows
    expected = trained(config, tmp_path / "cpu", torch.device("cpu")).rows
    for row, other in zip(ours, expected, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-3)


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_a_run_that_was_ended_is_resumed(
    on_gpu: Config, device: torch.device, tmp_path: Path, precision: str
) -> None:
    """To rounding: some of a GPU's sums have no fixed order."""
    config = on_gpu.override({"training.precision": precision})
    whole = trained(config, tmp_path / "whole", device).rows
    recorder = Recorder(at_step=lambda status: status.epoch == 2)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "resumed", Worker(device), recorder)
    rows = recorder.rows + trained(config, tmp_path / "resumed", device).rows
    for row, other in zip(rows, whole, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=2e-2)
    for ours, expected in zip(
        weights(tmp_path / "resumed").values(), weights(tmp_path / "whole").values(), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=0.1, atol=0.01)


def test_a_checkpoint_of_a_gpu_opens_on_a_cpu(
    on_gpu: Config, device: torch.device, tmp_path: Path
) -> None:
    trained(on_gpu, tmp_path, device)
    model = Checkpoint.open(tmp_path).build_model()
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_memory_is_free_again_after_a_run(
    on_gpu: Config, device: torch.device, tmp_path: Path
) -> None:
    trained(on_gpu, tmp_path / "first", device)
    gc.collect()
    after_one = torch.cuda.memory_allocated(device)
    for number in range(3):
        trained(on_gpu, tmp_path / str(number), device)
        gc.collect()
    assert torch.cuda.memory_allocated(device) <= after_one + 2**20


def test_a_step_waits_for_nothing(on_gpu: Config, device: torch.device, tmp_path: Path) -> None:
    """torch itself raises where a step of the loop synchronises with the device."""
    from raymed.training import loop

    real = loop.train_step

    def strictly(*arguments: object) -> object:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return real(*arguments)  # type: ignore[arg-type]
        finally:
            torch.cuda.set_sync_debug_mode("default")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", strictly)
        assert trained(on_gpu, tmp_path, device).rows


def rank(number: int, world: int, config: Config, folder: Path) -> None:
    torch.cuda.set_device(number)
    dist.init_process_group(
        "nccl", init_method=f"file://{folder / 'rendezvous'}", rank=number, world_size=world
    )
    recorder = Recorder()
    train(config, folder / "two", Worker(torch.device("cuda", number), number, world), recorder)
    np.save(folder / f"losses-{number}", [row["loss"] for row in recorder.rows])
    dist.destroy_process_group()


def test_two_ranks_follow_one(on_gpu: Config, device: torch.device, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("this machine has one GPU; two ranks of NCCL need two")
    config = on_gpu.override({"training.precision": "float32"})
    mp.spawn(rank, args=(2, config, tmp_path), nprocs=2)
    alone = [row["loss"] for row in trained(config, tmp_path / "one", device).rows]
    for number in range(2):
        losses = np.load(tmp_path / f"losses-{number}.npy")
        np.testing.assert_allclose(losses, alone, rtol=1e-3)
