"""bfloat16 on the CPU: the mixed-precision code for real."""

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from raymed.config import Config
from raymed.errors import UsageError
from raymed.evaluation import evaluate
from raymed.generation import generate
from raymed.model.precision import LSTM, Linear, LSTMCell, precision_context
from raymed.training import loop, precision
from raymed.training.checkpoint import MODEL_FILE, Checkpoint, latest
from raymed.training.errors import Interrupted, TrainingFailed
from raymed.training.loop import train
from raymed.training.observer import Row, Status
from raymed.training.precision import dtype_of, resolve_precision
from raymed.training.worker import Worker
from tests.support.metric_rows import untimed
from tests.support.recording import Recorder

ALONE = Worker(torch.device("cpu"))
GPU = torch.device("cuda", 0)


def trained(config: Config, folder: Path) -> list[Row]:
    recorder = Recorder()
    train(config, folder, ALONE, recorder)
    return recorder.rows


def weights(folder: Path) -> dict[str, torch.Tensor]:
    last = latest(folder)
    assert last is not None
    return safetensors.torch.load_file(last / MODEL_FILE)


def same(ours: Path, expected: Path) -> bool:
    one, other = weights(ours), weights(expected)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def mixed(tiny: Config) -> Config:
    return tiny.override({"training.precision": "bfloat16", "training.epochs": 2})


@pytest.fixture(scope="module")
def undisturbed(mixed: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    folder = tmp_path_factory.mktemp("mixed")
    return folder, trained(mixed, folder)


def test_a_run_in_bfloat16_differs_from_one_in_float32_by_rounding(
    tiny: Config, undisturbed: tuple[Path, list[Row]], tmp_path: Path
) -> None:
    _, rows = undisturbed
    full = trained(tiny.override({"training.epochs": 2}), tmp_path)
    assert rows[0]["loss"] != full[0]["loss"]
    for ours, exact in zip(rows, full, strict=True):
        assert ours["loss"] == pytest.approx(exact["loss"], rel=0.03)
    # Weights, and with them the optimiser's sums, are float32.
    assert {tensor.dtype for tensor in weights(undisturbed[0]).values()} == {torch.float32}


@pytest.mark.parametrize(("epoch", "step"), [(1, 2), (1, 4), (2, 3)])
def test_a_run_in_bfloat16_is_resumed_bit_for_bit(
    mixed: Config, undisturbed: tuple[Path, list[Row]], tmp_path: Path, epoch: int, step: int
) -> None:
    recorder = Recorder(at_step=lambda status: (status.epoch, status.done) == (epoch, step))
    with pytest.raises(Interrupted):
        train(mixed, tmp_path, ALONE, recorder)
    rows = recorder.rows + trained(mixed, tmp_path)
    assert untimed(rows) == untimed(undisturbed[1])
    assert same(tmp_path, undisturbed[0])


def test_a_run_keeps_its_precision(
    mixed: Config, undisturbed: tuple[Path, list[Row]], tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        train(mixed, tmp_path, ALONE, Recorder(at_step=lambda status: status.epoch == 2))
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.build_model().precision == torch.bfloat16
    # By default it keeps its precision, even on a machine that would have chosen float32.
    recorder = Recorder()
    with patch("raymed.training.setup.computes_bfloat16", lambda _: False):
        train(mixed.override({"training.precision": "auto"}), tmp_path, ALONE, recorder)
    assert untimed(recorder.rows) == untimed(undisturbed[1][1:])
    assert same(tmp_path, undisturbed[0])
    assert any("bfloat16" in text and "emulates" in text for text in recorder.warnings)
    with pytest.raises(UsageError, match=r"training.precision: is float32, .* in bfloat16"):
        train(mixed.override({"training.precision": "float32"}), tmp_path, ALONE, Recorder())


def test_features_of_each_precision_are_their_own(mixed: Config, tmp_path: Path) -> None:
    frozen = mixed.override({"model.train_encoder": "none", "training.epochs": 1})
    (row,) = trained(frozen, tmp_path / "mixed")
    (other,) = trained(frozen.override({"training.precision": "float32"}), tmp_path / "full")
    assert row["loss"] != other["loss"]
    assert row["loss"] == pytest.approx(other["loss"], rel=0.03)
    # What was cached in training is what the checkpoint itself makes of an image.
    checkpoint = Checkpoint.open(tmp_path / "mixed")
    evaluation = evaluate(checkpoint, checkpoint.config, "val", tmp_path)
    assert evaluation.rows["co_attention"]["recall_5"] == pytest.approx(row["recall_5"])


def test_a_checkpoint_writes_in_its_own_precision(undisturbed: tuple[Path, list[Row]]) -> None:
    checkpoint = Checkpoint.open(undisturbed[0])
    model = checkpoint.build_model()
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 32, 32), np.uint8))
    generated = generate(model, images, checkpoint.config.generation)
    model.precision = torch.float32
    exact = generate(model, images, checkpoint.config.generation)
    assert not torch.equal(generated.reading.tag_logits, exact.reading.tag_logits)
    torch.testing.assert_close(
        generated.reading.tag_logits, exact.reading.tag_logits, rtol=0.1, atol=0.1
    )


@pytest.mark.parametrize(
    ("encoder", "device", "native", "expected"),
    [
        ("vgg19", ALONE.device, True, "bfloat16"),
        ("vgg19", ALONE.device, False, "float32"),
        ("small", ALONE.device, True, "float32"),
        ("small", GPU, True, "bfloat16"),
        ("vgg19", GPU, False, "float32"),
    ],
)
def test_auto_is_decided_by_device_and_encoder(
    tiny: Config, encoder: str, device: torch.device, native: bool, expected: str
) -> None:
    config = tiny.override({"model.encoder": encoder})
    with patch.object(precision, "computes_bfloat16", lambda _: native):
        assert resolve_precision(config, device).training.precision == expected
        for given in ("float32", "bfloat16"):
            kept = config.override({"training.precision": given})
            assert resolve_precision(kept, device) == kept
    assert dtype_of(config.override({"training.precision": "bfloat16"})) == torch.bfloat16


def test_a_gpu_that_emulates_bfloat16_does_not_count() -> None:
    with patch("torch.cuda.is_bf16_supported") as supported:
        supported.side_effect = lambda including_emulation=True: including_emulation
        assert not precision.computes_bfloat16(GPU)


def test_layers_of_their_weights_precision_under_autocast() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5)
    ours = LSTM(5, 6, batch_first=True), LSTMCell(5, 6), Linear(5, 6)
    theirs = nn.LSTM(5, 6, batch_first=True), nn.LSTMCell(5, 6), nn.Linear(5, 6)
    for own, plain in zip(ours, theirs, strict=True):
        plain.load_state_dict(own.state_dict())
        inputs = x[:, 0] if isinstance(own, LSTMCell) else x
        with precision_context(torch.bfloat16, ALONE.device):
            found = own(inputs.bfloat16())
        expected = plain(inputs.bfloat16().float())
        first, other = (each[0] if isinstance(each, tuple) else each for each in (found, expected))
        assert first.dtype == torch.float32
        assert torch.equal(first, other)


def test_fetching_losses_less_often_changes_nothing(
    tiny: Config, whole: tuple[Path, list[Row]], tmp_path: Path
) -> None:
    recorder = Recorder()
    with patch.object(loop, "STEPS_PER_FETCH", {"cpu": 3}):
        train(tiny, tmp_path, ALONE, recorder)
    assert untimed(recorder.rows) == untimed(whole[1])
    assert same(tmp_path, whole[0])
    # Four steps an epoch: the third is read, and the last.
    assert [(s.epoch, s.done) for s in recorder.statuses[:4]] == [(1, 3), (1, 4), (2, 3), (2, 4)]


def test_divergence_fetched_late_names_the_step_where_it_began(
    tiny: Config, tmp_path: Path
) -> None:
    config = tiny.override({"training.learning_rate": 1e30, "training.clip_norm": 1e30})
    with (
        patch.object(loop, "STEPS_PER_FETCH", {"cpu": 4}),
        pytest.raises(TrainingFailed, match=r"epoch 1, step 2: .*nan"),
    ):
        train(config, tmp_path, ALONE, Recorder())
    assert latest(tmp_path) is None


def test_a_run_whose_losses_are_fetched_less_often_stops_at_a_fetch(
    tiny: Config, whole: tuple[Path, list[Row]], tmp_path: Path
) -> None:
    def first(status: Status) -> bool:
        return (status.epoch, status.done) == (2, 3)

    recorder = Recorder(at_step=first)
    with patch.object(loop, "STEPS_PER_FETCH", {"cpu": 3}):
        with pytest.raises(Interrupted):
            train(tiny, tmp_path, ALONE, recorder)
        last = latest(tmp_path)
        assert last is not None
        assert last.name == "epoch-0002-step-000003"
        assert untimed(recorder.rows + trained(tiny, tmp_path)) == untimed(whole[1])
    assert same(tmp_path, whole[0])
