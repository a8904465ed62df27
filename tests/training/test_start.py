"""What a run starts from: a frozen encoder, another run's encoder, or all of another run."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from rich.console import Console
from torch import Tensor

from raymed.absolute_paths import with_absolute_paths
from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.errors import UsageError
from raymed.generation import generate
from raymed.launch.run import run_training
from raymed.metrics.cider import cider
from raymed.model.encoder import build_encoder
from raymed.training import features
from raymed.training.checkpoint import ENCODER_FILE, MODEL_FILE, Checkpoint, latest
from raymed.training.checkpoint_paths import checkpoints_of
from raymed.training.loop import train
from raymed.training.observer import Row
from raymed.training.setup import check, check_image_size
from raymed.training.worker import Worker
from tests.support.metric_rows import untimed
from tests.support.prepared import prepare_phantom
from tests.support.recording import Recorder

ALONE = Worker(torch.device("cpu"))


def run(config: Config, folder: Path) -> list[Row]:
    recorder = Recorder()
    train(config, folder, ALONE, recorder)
    return recorder.rows


def last_file(folder: Path, name: str) -> Path:
    last = latest(folder)
    assert last is not None
    return last / name


def last_weights(folder: Path, name: str = MODEL_FILE) -> dict[str, Tensor]:
    return safetensors.torch.load_file(last_file(folder, name))


@pytest.fixture(scope="module")
def frozen(learner: Config) -> Config:
    return learner.override({"model.train_encoder": "none", "training.epochs": 3})


@pytest.fixture(scope="module")
def whole(frozen: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    """A run of three epochs with a frozen encoder."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(frozen, folder)


def test_only_the_part_after_the_frozen_encoder_is_trained_and_saved(
    frozen: Config, whole: tuple[Path, list[Row]]
) -> None:
    folder, rows = whole
    assert rows[-1]["loss"] < rows[0]["loss"]
    torch.manual_seed(frozen.training.seed)
    drawn = build_encoder("small").state_dict()
    kept = last_weights(folder, ENCODER_FILE)
    assert all(torch.equal(kept[f"encoder.{name}"], drawn[name]) for name in drawn)
    trained = last_weights(folder)
    assert not any(name.startswith("encoder.") for name in trained)
    assert "tag_classifier.output.weight" in trained
    # One file, however many checkpoints: the cache's own.
    inodes = {file.stat().st_ino for file in checkpoints_of(folder).rglob(ENCODER_FILE)}
    cached = Path(os.environ["XDG_CACHE_HOME"], "raymed/features").glob(f"*/{ENCODER_FILE}")
    assert len(inodes) == 1
    assert inodes <= {file.stat().st_ino for file in cached}


def test_training_on_features_equals_training_on_images(
    frozen: Config, whole: tuple[Path, list[Row]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The loop with the encoder's features computed anew for each batch, and not rounded."""
    encoder = Checkpoint.open(whole[0]).encoder(dropout=0.0)

    def rows(self: features.SplitFeatures, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        split = PreparedDataset.open(frozen.data.path).split(self.split)
        with torch.no_grad():
            feature_map, hidden = encoder(torch.from_numpy(split.pixels(numbers)))
        return feature_map.numpy(), hidden.numpy()

    monkeypatch.setattr(features.SplitFeatures, "rows", rows)
    by_images = run(frozen, tmp_path)
    for name in ("tag", "sent", "word", "attention"):
        expected = [row[f"loss_{name}"] for row in whole[1]]
        assert by_images[0][f"loss_{name}"] == pytest.approx(expected[0], rel=1e-2)
        assert by_images[0][f"loss_{name}"] != expected[0]


def test_a_checkpoint_opens_without_cache_or_dataset(
    frozen: Config, whole: tuple[Path, list[Row]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rows = whole
    split = PreparedDataset.open(frozen.data.path).split("val")
    images = torch.from_numpy(split.pixels(np.arange(len(split))))
    shutil.copytree(last_file(folder, ""), tmp_path / "elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no-cache"))
    checkpoint = Checkpoint.open(tmp_path / "elsewhere")
    generated = generate(checkpoint.build_model(), images, frozen.generation)
    texts = [report.text for report in generated.reports(checkpoint.vocabulary)]
    assert rows[-1]["cider"] == pytest.approx(cider(split.references, texts))
    assert rows[-1]["distinct"] == len(set(texts))
    assert not (tmp_path / "no-cache").exists()


def test_resumed_without_its_cache_a_run_ends_where_the_uninterrupted_one_ends(
    frozen: Config, whole: tuple[Path, list[Row]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crashed(Exception):
        pass

    def interrupt(_: Row) -> None:
        raise Crashed

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(Crashed):
        train(frozen, tmp_path / "run", ALONE, Recorder(interrupt))
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(features, "_digests", {})
    # The frozen encoder is the checkpoint's, not one that the seed would now draw.
    monkeypatch.setattr("raymed.training.start.build_encoder", None)
    resumed = run(frozen, tmp_path / "run")
    folder, rows = whole
    assert untimed(resumed) == untimed(rows[1:])
    for name in (MODEL_FILE, ENCODER_FILE):
        ours, expected = last_weights(tmp_path / "run", name), last_weights(folder, name)
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[key], expected[key]) for key in expected)


def test_without_hard_links_the_encoder_is_copied(
    frozen: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_disk(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_disk)
    run(frozen.override({"training.epochs": 2}), tmp_path)
    assert last_file(tmp_path, ENCODER_FILE).stat().st_nlink == 1
    Checkpoint.open(tmp_path).build_model()


@pytest.mark.parametrize("damage", ["gone", "cut", "another"])
def test_a_damaged_encoder_is_named(
    whole: tuple[Path, list[Row]], tmp_path: Path, damage: str
) -> None:
    shutil.copytree(last_file(whole[0], ""), tmp_path / "copy")
    file = tmp_path / "copy" / ENCODER_FILE
    content = file.read_bytes()
    file.unlink()
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    if damage == "another":
        safetensors.torch.save_file({"encoder.hidden.0.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(UsageError, match=f"{ENCODER_FILE}: damaged"):
        Checkpoint.open(tmp_path / "copy").build_model()


def test_the_encoder_of_another_system_can_be_reused_frozen(
    tiny: Config, frozen: Config, tmp_path: Path
) -> None:
    tagger = tiny.override({"model.system": "vgg19_tags", "training.encoder_learning_rate": 0.01})
    run(tagger, tmp_path / "tags")
    expected = Checkpoint.open(tmp_path / "tags").encoder(0.0).state_dict()
    settings = {"model.encoder_weights": str(tmp_path / "tags"), "training.epochs": 1}
    for weights in (tmp_path / "tags", Checkpoint.open(tmp_path / "tags").path):
        folder = tmp_path / f"from-{weights.name}"
        run(frozen.override(settings | {"model.encoder_weights": str(weights)}), folder)
        ours = last_weights(folder, ENCODER_FILE)
        assert {f"encoder.{name}" for name in expected} == set(ours)
        assert all(torch.equal(ours[f"encoder.{name}"], expected[name]) for name in expected)
    # Of a run whose encoder was frozen in its turn; and trained on from there.
    again = settings | {
        "model.encoder_weights": str(folder),
        "model.train_encoder": "all",
        "training.encoder_learning_rate": 1e-12,
    }
    run(frozen.override(again), tmp_path / "again")
    for name, tensor in Checkpoint.open(tmp_path / "again").encoder(0.0).state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-8)


def test_a_frozen_run_is_fine_tuned(
    frozen: Config, whole: tuple[Path, list[Row]], tmp_path: Path
) -> None:
    start = Checkpoint.open(whole[0])
    still = {"training.learning_rate": 1e-12, "training.encoder_learning_rate": 1e-12}
    settings = {
        "training.start_from": str(whole[0]),
        "training.epochs": 1,
        # Neither read nor there.
        "model.encoder_weights": "gone.pth",
    }
    for trained in ("all", "hidden", "none"):
        values = settings | still | {"model.train_encoder": trained}
        (row,) = run(frozen.override(values), tmp_path / f"still-{trained}")
        assert row["cider"] == pytest.approx(start.history[start.epoch - 1]["cider"])
    tuned = settings | {"model.train_encoder": "all"}
    run(frozen.override(tuned), tmp_path / "tuned")
    before = start.build_model().state_dict()
    after = Checkpoint.open(tmp_path / "tuned").build_model().state_dict()
    assert before.keys() == after.keys()
    for name in ("encoder.hidden.0.weight", "writer.w_out.weight"):
        assert not torch.equal(before[name], after[name])
        # It has moved on from there, and is not drawn anew.
        assert (
            torch.corrcoef(torch.stack([before[name].flatten(), after[name].flatten()]))[0, 1] > 0.9
        )


def test_unusable_starting_weights_are_rejected_before_anything_is_loaded(
    frozen: Config, whole: tuple[Path, list[Row]], tmp_path: Path
) -> None:
    folder = str(whole[0])
    (tmp_path / "empty").mkdir()
    for settings, message in (
        ({"training.start_from": "gone"}, r"training.start_from: gone: not a checkpoint"),
        ({"training.start_from": str(tmp_path / "empty")}, r"training.start_from: .*not a checkp"),
        (
            {"training.start_from": folder, "model.system": "lrcn"},
            r"model.system: is lrcn, but training.start_from: .* has co_attention: set model",
        ),
        (
            {"training.start_from": folder, "model.hidden_size": 16},
            r"model.hidden_size: is 16, but training.start_from: .* has 64",
        ),
        ({"training.start_from": folder, "model.encoder": "vgg11"}, r"model.encoder: is vgg11"),
        (
            {"training.start_from": folder, "data.vocabulary": 3},
            r"training.start_from: .*: its \d+ words differ from the 3 of ",
        ),
        (
            {"model.encoder_weights": str(tmp_path / "empty")},
            r"model.encoder_weights: .*not a check",
        ),
        (
            {"model.encoder_weights": folder, "model.encoder": "vgg11"},
            r"model.encoder_weights: .*its encoder is small, but model.encoder is vgg11: set",
        ),
        ({"model.encoder_weights": "gone"}, r"no 'gone' weights; set it to none or to the folder"),
    ):
        with pytest.raises(UsageError, match=message) as raised:
            check(frozen.override(settings))
        assert "\n" not in str(raised.value)
    # Other tags, of a dataset whose images find other things.
    prepare_phantom(tmp_path / "few", 4)
    few = {"data.path": str(tmp_path / "few"), "model.top_tags": 1, "training.start_from": folder}
    with pytest.raises(UsageError, match=r"training.start_from: .* differ from the \d+ of"):
        check(frozen.override(few))


def test_the_small_encoder_takes_no_weights_file(tiny: Config, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(UsageError, match=r"small encoder has no .*weights\.pth"):
        check(tiny.override({"model.encoder_weights": str(tmp_path / "weights.pth")}))


def test_images_too_small_for_the_encoder_are_refused(tiny: Config) -> None:
    for encoder, smallest in (("small", 7), ("vgg11", 32), ("densenet121", 29), ("resnet18", 1)):
        tags_only = tiny.override({"model.encoder": encoder, "model.system": "vgg19_tags"})
        check_image_size(tags_only, smallest)
        with pytest.raises(UsageError, match=f"{encoder} needs images of at least {smallest} pix"):
            check_image_size(tags_only, smallest - 1)
    # 32 pixels are one region of a ResNet, so that there is nothing to choose from.
    resnet = tiny.override({"model.encoder": "resnet18"})
    for system in ("co_attention", "visual_only", "soft_att"):
        message = rf"resnet18 makes a single region .* 32 pixels, and {system} .*image_size=33 or"
        with pytest.raises(UsageError, match=message):
            check(resnet.override({"model.system": system}))
        check_image_size(resnet.override({"model.system": system}), 33)
    check(resnet.override({"model.system": "semantic_only"}))


def test_the_start_is_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert with_absolute_paths(Config()).training.start_from is None
    config = with_absolute_paths(Config().override({"training.start_from": "runs/a"}))
    assert config.training.start_from == str(tmp_path / "runs/a")


def test_a_command_fine_tunes(
    frozen: Config, whole: tuple[Path, list[Row]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(whole[0].parent)
    settings = {
        "training.start_from": whole[0].name,
        "model.train_encoder": "all",
        "training.epochs": 1,
        "run.folder": str(tmp_path),
    }
    assert run_training(frozen.override(settings), Console(quiet=True)).epoch == 1


def test_truncated_words_are_reported_once_at_the_start(tiny: Config, tmp_path: Path) -> None:
    short = tiny.override({"generation.max_sentences": 1, "training.epochs": 1})
    for config, folder, epochs, warned in (
        (tiny, "whole", 1, False),
        (short, "cut", 1, True),
        (short, "cut", 2, False),  # resumes
        (short.override({"model.system": "vgg19_tags"}), "tags", 1, False),
    ):
        recorder = Recorder()
        train(config.override({"training.epochs": epochs}), tmp_path / folder, ALONE, recorder)
        truncated = [text for text in recorder.warnings if "generation.max_sentences=1 " in text]
        assert len(truncated) == warned
        assert recorder.warnings == truncated
    split = PreparedDataset.open(tiny.data.path).split("train")
    words = [[len(sentence.split()) for sentence in report] for report in split.sentences]
    share = 1 - sum(report[0] for report in words) / sum(map(sum, words))
    recorder = Recorder()
    train(short, tmp_path / "again", ALONE, recorder)
    assert recorder.warnings[0].startswith(f"{share:.1%} of the training reports' words")
