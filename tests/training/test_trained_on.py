"""What a run was trained on, against the images themselves."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from rich.console import Console

from raymed.config import Config
from raymed.data import fingerprints as module
from raymed.data.dataset import PreparedDataset
from raymed.data.examples import Example
from raymed.data.fingerprints import Fingerprints, fingerprints_file
from raymed.data.sources.phantom import draw
from raymed.errors import UsageError
from raymed.launch.run import run_training
from raymed.training.checkpoint import TRAINED_ON_FILE, Checkpoint, whole_checkpoints
from raymed.training.trained_on import Overlap, overlap, trained_on
from tests.support.prepared import prepare_examples

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def films() -> list[Example]:
    return list(draw(30, image_size=32))


def dataset(films: list[Example], folder: Path, seed: int = 0) -> PreparedDataset:
    prepare_examples(films, folder, image_size=32, seed=seed)
    return PreparedDataset.open(folder)


def images_of(dataset: PreparedDataset, split_name: str) -> tuple[list[str], list[bytes]]:
    split = dataset.split(split_name)
    return list(split.image_ids), [one.tobytes() for one in split.pixels(np.arange(len(split)))]


def by_hand(trained: list[PreparedDataset], scored: PreparedDataset, split_name: str) -> Overlap:
    """Ids and pixels compared as they are."""
    known = [images_of(one, "train") for one in trained]
    known_ids = {name for ids, _ in known for name in ids}
    known_pixels = {image for _, pixels in known for image in pixels}
    ids, pixels = images_of(scored, split_name)
    by_id, by_pixels = [i in known_ids for i in ids], [p in known_pixels for p in pixels]
    either = [a or b for a, b in zip(by_id, by_pixels, strict=True)]
    return Overlap(sum(either), sum(by_id), sum(by_pixels))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_the_same_data_prepared_with_another_seed(
    trained: Path, phantom: Path, films: list[Example], cache: Path
) -> None:
    checkpoint, own = Checkpoint.open(trained), PreparedDataset.open(phantom)
    for split_name in ("val", "test"):
        assert overlap(checkpoint, own, split_name) == Overlap(0, 0, 0)
    again = dataset(films, cache / "again", seed=1)
    assert again.info.content_hash != own.info.content_hash
    wanted = by_hand([own], again, "test")
    assert 0 < wanted.images == wanted.by_id == wanted.by_pixels
    assert overlap(checkpoint, again, "test") == wanted


def test_other_ids_and_other_pixels_are_counted_apart(
    trained: Path, phantom: Path, films: list[Example], cache: Path
) -> None:
    changed = []
    for number, film in enumerate(films):
        if number % 3 == 0:
            film = replace(film, image_id=f"new/{number}.png", study=f"new {number}")
        elif number % 3 == 1:
            film = replace(film, image=255 - film.image)
        changed.append(film)
    other = dataset(changed, cache / "other", seed=3)
    wanted = by_hand([PreparedDataset.open(phantom)], other, "train")
    assert wanted.by_id > 0 < wanted.by_pixels
    assert max(wanted.by_id, wanted.by_pixels) < wanted.images < 24
    assert overlap(Checkpoint.open(trained), other, "train") == wanted


def test_what_a_run_started_from_counts_too(
    tiny: Config, trained: Path, phantom: Path, films: list[Example], cache: Path
) -> None:
    """Fine-tuned on other images, a model has still seen those of the first run."""
    again = dataset(films, cache / "again", seed=1)
    changes = {
        "data.path": again.path,
        "run.folder": str(cache),
        "training.epochs": 1,
        "model.encoder_weights": str(trained),
    }
    run_training(tiny.override(changes), QUIET)
    checkpoint = Checkpoint.open(cache / "run")
    both = [PreparedDataset.open(phantom), again]
    for split_name in ("val", "test"):
        wanted = by_hand(both, again, split_name)
        assert wanted.images > by_hand([again], again, split_name).images
        assert overlap(checkpoint, again, split_name) == wanted


def test_without_a_record_at_the_start_there_is_none(
    tiny: Config, trained: Path, cache: Path
) -> None:
    shutil.copytree(trained, cache / "old")
    for file in (cache / "old").rglob(TRAINED_ON_FILE):
        file.unlink()
    assert trained_on(Checkpoint.open(cache / "old")) is None
    changes = {
        "run.folder": str(cache),
        "training.epochs": 1,
        "model.encoder_weights": str(cache / "old"),
    }
    run_training(tiny.override(changes), QUIET)
    assert trained_on(Checkpoint.open(cache / "run")) is None


def test_all_checkpoints_of_a_run_share_one_file(trained: Path) -> None:
    files = [folder / TRAINED_ON_FILE for folder in whole_checkpoints(trained)]
    assert len(files) > 1
    assert len({file.stat().st_ino for file in files}) == 1
    # 16 bytes an image.
    assert files[0].stat().st_size < 16 * 24 + 300


def test_fingerprints_are_computed_once_per_dataset(
    films: list[Example], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = dataset(films, cache / "own")
    monkeypatch.setattr(module, "CHUNK", 5)
    file = fingerprints_file(own, "train")
    found = Fingerprints.load(file)
    ids, pixels = images_of(own, "train")
    assert len(np.unique(found.ids)) == len(ids)
    assert len(np.unique(found.pixels)) == len(set(pixels)) > 1
    with monkeypatch.context() as patch:
        patch.setattr(module, "_hash", None)
        assert fingerprints_file(own, "train") == file
    # A half file, as of a full disk, is made anew.
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    assert fingerprints_file(own, "train").read_bytes() == whole


def test_a_damaged_record_is_named(trained: Path, cache: Path) -> None:
    shutil.copytree(Checkpoint.open(trained).path, cache / "checkpoint")
    file = cache / "checkpoint" / TRAINED_ON_FILE
    file.write_bytes(b"half")
    with pytest.raises(UsageError, match=rf"{TRAINED_ON_FILE}: damaged .*delete it"):
        trained_on(Checkpoint.open(cache / "checkpoint"))
    file.unlink()
    safetensors.numpy.save_file({"ids": np.zeros(1, np.uint64)}, file)
    with pytest.raises(UsageError, match="damaged"):
        trained_on(Checkpoint.open(cache / "checkpoint"))
