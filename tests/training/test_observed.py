"""What a run reports besides its steps: an uninformative score, and long work between steps."""

from pathlib import Path

import pytest
import torch

from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.training.checkpoint import Checkpoint
from raymed.training.loop import train
from raymed.training.worker import Worker
from tests.support.prepared import prepare_phantom
from tests.support.recording import Recorder

ALONE = Worker(torch.device("cpu"))


def test_where_no_score_distinguishes_epochs_one_warning_is_given_and_the_loss_decides(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prepare_phantom(tmp_path / "few", 12)
    assert PreparedDataset.open(tmp_path / "few").info.counts["val"] == 1
    config = tiny.override({"data.path": str(tmp_path / "few")})
    recorder = Recorder()
    train(config, tmp_path / "run", ALONE, recorder)
    (warning,) = recorder.warnings
    assert warning.startswith("CIDEr cannot be above 0 on the 1 image(s) of split val, whatever ")
    losses = [row["loss"] for row in recorder.rows]
    assert {row["score"] for row in recorder.rows} == {0.0}
    assert losses[0] != min(losses)
    best = Checkpoint.open(tmp_path / "run")
    assert best.epoch == losses.index(min(losses)) + 1
    # No CIDEr is asked of a system that writes no report, and none is missed.
    tags_only = config.override({"model.system": "vgg19_tags", "training.epochs": 1})
    other = Recorder()
    train(tags_only, tmp_path / "tags", ALONE, other)
    assert other.warnings == []


def test_work_before_and_between_epochs_is_reported(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recorder = Recorder()
    train(tiny.override({"training.epochs": 2}), tmp_path / "run", ALONE, recorder)
    works = [(one.epoch, one.doing) for one in recorder.works if one.done == one.total]
    assert works.index((0, "copying the train images to the cache")) < works.index(
        (0, "hashing the train images")
    )
    for epoch in (1, 2):
        assert (epoch, "validating, batches") in works
