"""Training the encoder's hidden layers on the cached feature maps of its frozen convolutions."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.generation import generate
from raymed.metrics.cider import cider
from raymed.model.encoder import build_encoder
from raymed.training import features
from raymed.training.checkpoint import ENCODER_FILE, MODEL_FILE, Checkpoint, latest
from raymed.training.loop import train
from raymed.training.observer import Row
from raymed.training.worker import Worker
from tests.support.metric_rows import untimed
from tests.support.recording import Recorder

ALONE = Worker(torch.device("cpu"))


def run(config: Config, folder: Path) -> list[Row]:
    recorder = Recorder()
    train(config, folder, ALONE, recorder)
    return recorder.rows


def last_weights(folder: Path, name: str) -> dict[str, Tensor]:
    last = latest(folder)
    assert last is not None
    return safetensors.torch.load_file(last / name)


@pytest.fixture(scope="module")
def hidden(learner: Config) -> Config:
    return learner.override({"model.train_encoder": "hidden", "training.epochs": 3})


@pytest.fixture(scope="module")
def whole(hidden: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(hidden, folder)


def test_the_hidden_layers_alone_are_trained(hidden: Config, whole: tuple[Path, list[Row]]) -> None:
    folder, rows = whole
    assert rows[-1]["loss"] < rows[0]["loss"]
    torch.manual_seed(hidden.training.seed)
    drawn = build_encoder("small").state_dict()
    frozen, trained = (last_weights(folder, name) for name in (ENCODER_FILE, MODEL_FILE))
    convolutional = {name for name in drawn if name.startswith(("convolutions", "mean", "std"))}
    assert set(frozen) == {f"encoder.{name}" for name in convolutional}
    assert all(torch.equal(frozen[f"encoder.{name}"], drawn[name]) for name in convolutional)
    in_model = {name for name in trained if name.startswith("encoder.")}
    assert in_model == {f"encoder.{name}" for name in set(drawn) - convolutional}
    for layer in range(2):
        name = f"hidden.{layer}.weight"
        assert not torch.equal(trained[f"encoder.{name}"], drawn[name])


def test_only_feature_maps_are_cached(whole: tuple[Path, list[Row]]) -> None:
    inode = (latest(whole[0]) / ENCODER_FILE).stat().st_ino  # type: ignore[operator]
    cached = Path(os.environ["XDG_CACHE_HOME"], "raymed/features").glob(f"*/{ENCODER_FILE}")
    (folder,) = [file.parent for file in cached if file.stat().st_ino == inode]
    held = features.SplitFeatures(folder, "train", 24, (128, 4, 4), None)
    assert held.is_whole(0)
    assert [part.shape for part in held.rows(np.arange(24))] == [(24, 128, 4, 4)]
    assert held.row_bytes == 2 * 128 * 4 * 4


def test_training_on_feature_maps_equals_training_on_images(
    hidden: Config, whole: tuple[Path, list[Row]], tmp_path: Path
) -> None:
    """The whole encoder in the loop, whose convolutions all but stand still."""
    settings = {"training.epochs": 1, "training.encoder_learning_rate": 1e-12}
    # What gradients are clipped to must not depend on those of the convolutions.
    only_hidden = hidden.override({**settings, "training.clip_norm": 1e9})
    (cached,) = run(only_hidden, tmp_path / "cached")
    (looped,) = run(only_hidden.override({"model.train_encoder": "all"}), tmp_path / "looped")
    for name in ("tag", "sent", "word", "attention"):
        assert cached[f"loss_{name}"] == pytest.approx(looped[f"loss_{name}"], rel=2e-3)
        assert cached[f"loss_{name}"] != whole[1][0][f"loss_{name}"]


def test_a_checkpoint_opens_without_cache_or_dataset(
    hidden: Config, whole: tuple[Path, list[Row]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rows = whole
    split = PreparedDataset.open(hidden.data.path).split("val")
    images = torch.from_numpy(split.pixels(np.arange(len(split))))
    last = latest(folder)
    assert last is not None
    shutil.copytree(last, tmp_path / "elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no-cache"))
    checkpoint = Checkpoint.open(tmp_path / "elsewhere")
    generated = generate(checkpoint.build_model(), images, hidden.generation)
    texts = [report.text for report in generated.reports(checkpoint.vocabulary)]
    assert rows[-1]["cider"] == pytest.approx(cider(split.references, texts))
    assert not (tmp_path / "no-cache").exists()


def test_a_resumed_run_ends_where_the_uninterrupted_one_ends(
    hidden: Config, whole: tuple[Path, list[Row]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crashed(Exception):
        pass

    def interrupt(_: Row) -> None:
        raise Crashed

    with pytest.raises(Crashed):
        train(hidden, tmp_path, ALONE, Recorder(interrupt))
    monkeypatch.setattr(features, "_digests", {})
    monkeypatch.setattr("raymed.training.start.build_encoder", None)
    # Its features are the ones in the cache: nothing is computed a second time.
    monkeypatch.setattr(features.SplitFeatures, "write", None)
    resumed = run(hidden, tmp_path)
    assert untimed(resumed) == untimed(whole[1][1:])
    for name in (MODEL_FILE, ENCODER_FILE):
        ours, expected = last_weights(tmp_path, name), last_weights(whole[0], name)
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[key], expected[key]) for key in expected)


@pytest.mark.parametrize("trained", ["all", "none"])
def test_a_run_of_another_mode_starts_from_it(
    hidden: Config, whole: tuple[Path, list[Row]], tmp_path: Path, trained: str
) -> None:
    start = Checkpoint.open(whole[0])
    settings = {
        "training.start_from": str(whole[0]),
        "training.epochs": 1,
        "training.learning_rate": 1e-12,
        "training.encoder_learning_rate": 1e-12,
        "model.train_encoder": trained,
    }
    (row,) = run(hidden.override(settings), tmp_path)
    assert row["cider"] == pytest.approx(start.history[start.epoch - 1]["cider"])
    before = start.build_model().state_dict()
    after = Checkpoint.open(tmp_path).build_model().state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-8)
