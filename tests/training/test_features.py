"""A frozen encoder's features: computed once, by whoever needs them, and never partly."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from raymed.config import Config
from raymed.data import features as files
from raymed.data.dataset import PreparedDataset
from raymed.data.features import SplitFeatures
from raymed.errors import UsageError
from raymed.model.encoder import Encoder, build_encoder
from raymed.training import features as module
from raymed.training.checkpoint import ENCODER_FILE
from raymed.training.errors import Interrupted
from raymed.training.features import FrozenEncoder, digest, freeze_encoder
from raymed.training.worker import Worker
from tests.support.recording import Recorder

ALONE = Worker(torch.device("cpu"))
IMAGES_PER_FILE = 4
FILES = 7
"""Six of the 24 training images, and one of the three validation images."""


@pytest.fixture
def frozen(tiny: Config) -> Config:
    return tiny.override({"model.train_encoder": "none"})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, files of a few images, and no memory of other tests' encoders."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "FILE_ROWS", IMAGES_PER_FILE)
    monkeypatch.setattr(module, "_digests", {})
    return tmp_path / "cache/raymed/features"


def froze(config: Config, worker: Worker = ALONE) -> FrozenEncoder:
    dataset = PreparedDataset.open(config.data.path)
    splits = {name: dataset.split(name) for name in ("train", "val")}
    return freeze_encoder(config, dataset, splits, None, worker, Recorder())


def all_rows(features: SplitFeatures) -> tuple[np.ndarray, np.ndarray]:
    return features.rows(np.arange(features.count))


def by_hand(w: dict[str, Tensor], image: Tensor) -> tuple[Tensor, Tensor]:
    """The small encoder's features of one image [H, W], from its weights alone."""
    x = ((image / 255 - 0.5) / 0.25).view(1, 1, *image.shape)
    for place, (stride, padding) in {0: (2, 2), 4: (1, 1), 8: (1, 1)}.items():
        if place:
            x = F.max_pool2d(x, 2)
        kernel, bias, scale, shift = (
            w[f"encoder.convolutions.{n}.{part}"]
            for n in (place, place + 1)
            for part in ("weight", "bias")
        )
        x = F.relu(F.group_norm(F.conv2d(x, kernel, bias, stride, padding), 8, scale, shift))
    halves = [x[:, :, :2, :2], x[:, :, :2, 2:], x[:, :, 2:, :2], x[:, :, 2:, 2:]]
    f = torch.stack([half.amax(dim=(2, 3))[0] for half in halves], dim=1).flatten()
    for layer in range(2):
        f = F.relu(w[f"encoder.hidden.{layer}.weight"] @ f + w[f"encoder.hidden.{layer}.bias"])
    return x[0], f


def test_features_are_the_encoders(frozen: Config) -> None:
    cached = froze(frozen)
    weights = safetensors.torch.load_file(cached.encoder_file)
    torch.manual_seed(frozen.training.seed)
    drawn = build_encoder("small").state_dict()
    assert set(weights) == {f"encoder.{name}" for name in drawn}
    assert all(torch.equal(weights[f"encoder.{name}"], drawn[name]) for name in drawn)
    dataset = PreparedDataset.open(frozen.data.path)
    for name in ("train", "val"):
        split = dataset.split(name)
        feature_maps, hidden = all_rows(cached.features[name])
        assert (feature_maps.shape, hidden.shape) == ((len(split), 128, 4, 4), (len(split), 256))
        assert feature_maps.dtype == hidden.dtype == np.float16
        for row, image in enumerate(split.pixels(np.arange(len(split)))):
            # Half of what float16 leaves of the last bit, and what the order of sums makes.
            for ours, expected in zip(
                (feature_maps[row], hidden[row]),
                by_hand(weights, torch.from_numpy(image)),
                strict=True,
            ):
                np.testing.assert_allclose(ours, expected.detach(), rtol=6e-4, atol=1e-5)
    rows = np.array([23, 0, 4, 4, 3])
    for ours, whole in zip(
        cached.features["train"].rows(rows), all_rows(cached.features["train"]), strict=True
    ):
        np.testing.assert_array_equal(ours, whole[rows])
    with pytest.raises(IndexError):
        cached.features["train"].rows(np.array([24]))


def test_the_folder_depends_on_weights_and_data_alone(
    frozen: Config, phantom: Path, tmp_path: Path, cache: Path
) -> None:
    first = froze(frozen).encoder_file
    shutil.copytree(phantom, tmp_path / "copy")
    alike = {"data.path": str(tmp_path / "copy"), "loss.word": 2.0, "model.system": "lrcn"}
    assert froze(frozen.override(alike)).encoder_file == first
    assert froze(frozen.override({"training.seed": 1})).encoder_file != first
    assert len(list(cache.iterdir())) == 2
    encoder = build_encoder("small")
    before = digest(encoder)
    assert digest(encoder) == before
    with torch.no_grad():
        encoder.hidden[1].bias[3] += 1e-6
    assert digest(encoder) != before
    other = build_encoder("small")
    other.load_state_dict(encoder.state_dict())
    other.mean += 0.1
    assert digest(other) != digest(encoder)


def test_features_are_computed_once_and_the_encoder_is_built_once(
    frozen: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = froze(frozen)
    before = {path: path.stat().st_mtime_ns for path in first.encoder_file.parent.iterdir()}

    def built(*_: object) -> Encoder:
        raise AssertionError("the encoder was built again")

    monkeypatch.setattr(module, "build_starting_encoder", built)
    again = froze(frozen)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for ours, expected in zip(
        all_rows(again.features["val"]), all_rows(first.features["val"]), strict=True
    ):
        np.testing.assert_array_equal(ours, expected)


def cut(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(os.urandom(file.stat().st_size)),
        lambda file: file.unlink(),
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
    ],
)
@pytest.mark.parametrize("name", ["train-00002.arrow", "val-00000.arrow", ENCODER_FILE])
def test_only_a_damaged_file_is_computed_again(
    frozen: Config, name: str, damage: Callable[[Path], object]
) -> None:
    folder = froze(frozen).encoder_file.parent
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(before) == FILES + 2  # the encoder's and the lock
    damage(folder / name)
    froze(frozen)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    changed = {
        path.name for path in folder.iterdir() if path.stat().st_mtime_ns != times[path.name]
    }
    assert changed == {name}


def test_a_file_of_other_images_is_not_used(frozen: Config) -> None:
    folder = froze(frozen).encoder_file.parent
    expected = (folder / "val-00000.arrow").read_bytes()
    shutil.copy(folder / "train-00000.arrow", folder / "val-00000.arrow")  # four rows, not three
    froze(frozen)
    assert (folder / "val-00000.arrow").read_bytes() == expected


def builder(config: Config, worker: Worker, log: Path, begin: Barrier, hang: bool) -> None:
    """Freeze with others, noting each file that is written; or stop for ever in the second."""
    torch.set_num_threads(1)
    files.FILE_ROWS = IMAGES_PER_FILE
    real = SplitFeatures.write

    def write(self: SplitFeatures, number: int, chunks: Iterator) -> None:
        with log.open("a") as file:
            file.write(f"{self.files[number].name} {os.getpid()}\n")
        if hang and len(log.read_text().splitlines()) > 1:
            time.sleep(3600)
        real(self, number, chunks)
        time.sleep(0.05)

    SplitFeatures.write = write  # type: ignore[method-assign]
    dataset = PreparedDataset.open(config.data.path)
    splits = {name: dataset.split(name) for name in ("train", "val")}
    if worker.world > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{log}.rendezvous",
            rank=worker.rank,
            world_size=worker.world,
        )
    begin.wait()
    freeze_encoder(config, dataset, splits, None, worker, Recorder())


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.arrow")}


@pytest.mark.slow
def test_several_processes_share_the_work(
    frozen: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two runs at once: one of two workers, one of a single worker.
    places = [Worker(ALONE.device, 0, 2), Worker(ALONE.device, 1, 2), ALONE]
    spawn = get_context("spawn")
    begin, log = spawn.Barrier(len(places)), tmp_path / "log"
    processes = [
        spawn.Process(target=builder, args=(frozen, place, log, begin, False)) for place in places
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
        assert process.exitcode == 0
    lines = [line.split() for line in log.read_text().splitlines()]
    assert len({pid for _, pid in lines}) == 3
    folder = froze(frozen).encoder_file.parent
    assert sorted(name for name, _ in lines) == sorted(bytes_of(folder))
    assert len(lines) == FILES
    assert not list(folder.glob(".*.partial"))
    # A single process makes the same files, byte for byte.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    alone = froze(frozen).encoder_file.parent
    assert alone != folder
    assert bytes_of(alone) == bytes_of(folder)


@pytest.mark.slow
def test_a_killed_process_makes_no_other_wait(frozen: Config, tmp_path: Path) -> None:
    spawn = get_context("spawn")
    begin, log = spawn.Barrier(1), tmp_path / "log"
    process = spawn.Process(target=builder, args=(frozen, ALONE, log, begin, True))
    process.start()
    while not log.exists() or len(log.read_text().splitlines()) < 2:
        assert process.is_alive()
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    cached = froze(frozen)
    assert len(bytes_of(cached.encoder_file.parent)) == FILES
    assert [len(all_rows(each)[0]) for each in cached.features.values()] == [24, 3]


def test_files_of_a_killed_process_are_removed(frozen: Config) -> None:
    folder = froze(frozen).encoder_file.parent
    (folder / "train-00001.arrow").rename(folder / ".train-00001.arrow.0123.partial")
    froze(frozen)
    assert len(bytes_of(folder)) == FILES
    assert not list(folder.glob(".*.partial"))


def test_cache_that_cannot_be_written(frozen: Config, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("")
    with pytest.raises(UsageError, match=r"cannot write the encoder's features .*XDG_CACHE_HOME"):
        froze(frozen)


def test_features_too_large_for_float16(
    frozen: Config, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    encoder = build_encoder("small")
    with torch.no_grad():
        encoder.hidden[1].weight *= 1e6
    monkeypatch.setattr(module, "build_starting_encoder", lambda *_: encoder)
    with pytest.raises(UsageError, match=r"not finite in float16.*train_encoder=all"):
        froze(frozen)
    assert not list(cache.rglob("*.arrow*"))


def test_an_interrupted_computation_stops_between_two_chunks_and_resumes(
    frozen: Config, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(module, "STEP", 1)
    dataset = PreparedDataset.open(frozen.data.path)
    splits = {name: dataset.split(name) for name in ("train", "val")}
    recorder = Recorder(at_step=lambda status: status.done == IMAGES_PER_FILE + 2)
    with pytest.raises(Interrupted):
        freeze_encoder(frozen, dataset, splits, None, ALONE, recorder)
    # Two images of the second file were known then.
    (folder,) = cache.iterdir()
    assert set(bytes_of(folder)) == {"train-00000.arrow"}
    assert not list(folder.glob(".*.partial"))
    before = (folder / "train-00000.arrow").stat().st_mtime_ns
    cached = froze(frozen)
    assert len(bytes_of(folder)) == FILES
    assert (folder / "train-00000.arrow").stat().st_mtime_ns == before
    assert [len(all_rows(each)[0]) for each in cached.features.values()] == [24, 3]


@pytest.mark.slow
def test_an_interrupted_computation_does_not_wait_for_another_process(
    frozen: Config, tmp_path: Path, cache: Path
) -> None:
    spawn = get_context("spawn")
    begin, log = spawn.Barrier(1), tmp_path / "log"
    process = spawn.Process(target=builder, args=(frozen, ALONE, log, begin, True))
    process.start()
    while not log.exists() or len(log.read_text().splitlines()) < 2:
        assert process.is_alive()
        time.sleep(0.05)
    dataset = PreparedDataset.open(frozen.data.path)
    splits = {name: dataset.split(name) for name in ("train", "val")}
    (folder,) = cache.iterdir()
    recorder = Recorder(at_step=lambda _: len(bytes_of(folder)) == FILES - 1)
    try:
        # The other stays in its second file, and all the rest is made here.
        with pytest.raises(Interrupted):
            freeze_encoder(frozen, dataset, splits, None, ALONE, recorder)
    finally:
        process.kill()
        process.join()


def test_progress_counts_images(frozen: Config) -> None:
    dataset = PreparedDataset.open(frozen.data.path)
    splits = {name: dataset.split(name) for name in ("train", "val")}
    recorder = Recorder()
    freeze_encoder(frozen, dataset, splits, None, ALONE, recorder)
    seen = [(status.done, status.total) for status in recorder.statuses]
    assert seen[0] == (0, 27)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (27, 27)
