"""Features of any scale: what is measured, where it is kept, and that no loss depends on it."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.errors import UsageError
from raymed.model.encoder import Encoder, build_encoder
from raymed.training import features
from raymed.training.checkpoint import MODEL_FILE, latest
from raymed.training.errors import Interrupted
from raymed.training.loop import train
from raymed.training.observer import Row
from raymed.training.worker import Worker
from tests.support.recording import Recorder

ALONE = Worker(torch.device("cpu"))
FACTORS = {"all": 300.0, "hidden": 256.0, "none": 256.0}
"""By ``train_encoder``. Cached features are float16, rounded alike only if times a power of two."""


def run(config: Config, folder: Path) -> list[Row]:
    recorder = Recorder()
    train(config, folder, ALONE, recorder)
    return recorder.rows


def scales(folder: Path) -> dict[str, float]:
    last = latest(folder)
    assert last is not None
    weights = safetensors.torch.load_file(last / MODEL_FILE)
    return {name: weights[name].item() for name in ("visual_scale", "feature_scale")}


@pytest.mark.parametrize("trained", ["all", "hidden", "none"])
def test_multiplying_the_last_activations_changes_no_loss(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: str
) -> None:
    config = tiny.override({"model.train_encoder": trained, "training.epochs": 2})
    config = config.override({"training.encoder_learning_rate": 1e-3})
    plain = run(config, tmp_path / "plain")
    real, factor = Encoder.feature_map, FACTORS[trained]

    def louder(self: Encoder, images: Tensor) -> Tensor:
        return factor * real(self, images)

    monkeypatch.setattr(Encoder, "feature_map", louder)
    monkeypatch.setattr(features, "_digests", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    loud = run(config, tmp_path / "loud")
    for ours, expected in zip(loud, plain, strict=True):
        for name in ("loss", "loss_tag", "loss_sent", "loss_word", "loss_attention"):
            assert ours[name] == pytest.approx(expected[name], rel=1e-4)
    measured, before = scales(tmp_path / "loud"), scales(tmp_path / "plain")
    assert measured["visual_scale"] == pytest.approx(factor * before["visual_scale"], rel=1e-3)


def test_scales_are_root_mean_squares_over_the_training_images(
    tiny: Config, tmp_path: Path
) -> None:
    run(tiny.override({"model.train_encoder": "none", "training.epochs": 1}), tmp_path)
    torch.manual_seed(tiny.training.seed)
    encoder = build_encoder("small").double()
    split = PreparedDataset.open(tiny.data.path).split("train")
    total, count, hidden_total = 0.0, 0, 0.0
    with torch.no_grad():
        for image in split.pixels(np.arange(len(split))):
            feature_map, hidden = encoder(torch.from_numpy(image)[None])
            total += sum(value**2 for value in feature_map.flatten().tolist())
            hidden_total += sum(value**2 for value in hidden.flatten().tolist())
            count += 1
    found = scales(tmp_path)
    expected = (total / (count * feature_map.numel())) ** 0.5
    assert found["visual_scale"] == pytest.approx(expected, rel=1e-3)
    expected = (hidden_total / (count * hidden.numel())) ** 0.5
    assert found["feature_scale"] == pytest.approx(expected, rel=1e-3)


def test_scales_are_measured_once(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept when the run resumes, and by a run that starts from it."""
    run(tiny.override({"training.epochs": 1}), tmp_path / "first")
    before = scales(tmp_path / "first")
    assert before["visual_scale"] != 1
    monkeypatch.setattr("raymed.training.setup.set_scales", None)
    run(tiny.override({"training.epochs": 2}), tmp_path / "first")
    assert scales(tmp_path / "first") == before
    for trained in ("all", "hidden", "none"):
        settings = {
            "training.start_from": str(tmp_path / "first"),
            "training.epochs": 1,
            "model.train_encoder": trained,
        }
        run(tiny.override(settings), tmp_path / trained)
        assert scales(tmp_path / trained) == before


def test_features_without_a_scale_are_refused(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Encoder.feature_map
    for factor, value in ((0.0, "0"), (float("nan"), "nan")):
        monkeypatch.setattr(
            Encoder, "feature_map", lambda self, images, by=factor: by * real(self, images)
        )
        with pytest.raises(UsageError, match=f"the encoder's feature map is {value} throughout"):
            run(tiny, tmp_path)


def test_a_run_may_be_stopped_while_they_are_measured(tiny: Config, tmp_path: Path) -> None:
    class Stopped(Recorder):
        def ending(self) -> bool:
            return True

    with pytest.raises(Interrupted):
        train(tiny, tmp_path, ALONE, Stopped())
