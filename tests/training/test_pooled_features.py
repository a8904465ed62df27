"""The features by which images are compared."""

from pathlib import Path

import numpy as np
import pytest
import torch

from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.errors import UsageError
from raymed.model.encoder import Encoder, build_encoder
from raymed.training import pooled_features as module
from raymed.training.pooled_features import pooled_features
from tests.support.prepared import prepare_phantom


class OnlyEncoder:
    """What of a model is asked for."""

    device, precision = torch.device("cpu"), torch.float32

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder.eval()

    def precision_context(self) -> torch.no_grad:
        return torch.no_grad()


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedDataset:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prepare_phantom(tmp_path / "data", studies=20, image_size=32)
    return PreparedDataset.open(tmp_path / "data")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of images encoded."""
    counts: list[int] = []
    real = Encoder.feature_map

    def counting(self: Encoder, images: torch.Tensor) -> torch.Tensor:
        counts.append(len(images))
        return real(self, images)

    monkeypatch.setattr(Encoder, "feature_map", counting)
    return counts


def settings(train_encoder: str) -> Config:
    return Config().override({"model.encoder": "small", "model.train_encoder": train_encoder})


def test_frozen_features_are_computed_once(dataset: PreparedDataset, asked: list[int]) -> None:
    torch.manual_seed(0)
    model, count = OnlyEncoder(build_encoder("small")), dataset.info.counts["train"]
    rows = np.arange(count)
    first = pooled_features(model, settings("none"), dataset, "train")
    again = pooled_features(model, settings("hidden"), dataset, "train")
    assert sum(asked) == count == len(first)
    assert np.array_equal(first.descriptors(rows), again.descriptors(rows))
    assert np.linalg.norm(first.descriptors(rows), axis=1) == pytest.approx(1)
    other = OnlyEncoder(build_encoder("small"))
    others = pooled_features(other, settings("none"), dataset, "train").descriptors(rows)
    assert sum(asked) == 2 * count
    assert not np.allclose(others, first.descriptors(rows))


def test_trained_features_leave_nothing_in_the_cache(
    dataset: PreparedDataset, asked: list[int], tmp_path: Path
) -> None:
    model, count = OnlyEncoder(build_encoder("small")), dataset.info.counts["val"]
    for _ in range(2):
        assert len(pooled_features(model, settings("all"), dataset, "val")) == count
    assert sum(asked) == 2 * count
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_a_cache_that_cannot_be_written_is_named(
    dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(module, "cache_folder", lambda *names: tmp_path.joinpath("file", *names))
    model = OnlyEncoder(build_encoder("small"))
    with pytest.raises(UsageError, match=r"val\.npy: cannot be written.*XDG_CACHE_HOME"):
        pooled_features(model, settings("none"), dataset, "val")
