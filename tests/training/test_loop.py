import errno
import math
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from raymed.config import Config
from raymed.data.batches import TokenisedSplit
from raymed.data.dataset import PreparedDataset
from raymed.data.vocabulary import Vocabulary
from raymed.errors import UsageError
from raymed.generation import generate
from raymed.metrics.cider import cider
from raymed.model.encoder import build_encoder
from raymed.model.systems import build_system
from raymed.sections import TrainingConfig
from raymed.training import loop
from raymed.training.checkpoint import MODEL_FILE, Checkpoint, latest
from raymed.training.checkpoint_paths import checkpoints_of
from raymed.training.errors import Interrupted, TrainingFailed
from raymed.training.log import METRICS_FILE, read_metrics
from raymed.training.loop import train
from raymed.training.loss import LossTerms, loss_terms
from raymed.training.observer import Row, Status
from raymed.training.optimizer import build_optimizer, set_learning_rates
from raymed.training.setup import check
from raymed.training.worker import Worker
from tests.support.metric_rows import untimed
from tests.support.recording import Recorder

ALONE = Worker(torch.device("cpu"))


def run(config: Config, folder: Path) -> list[Row]:
    recorder = Recorder()
    train(config, folder, ALONE, recorder)
    return recorder.rows


def last_weights(folder: Path) -> dict[str, Tensor]:
    last = latest(folder)
    assert last is not None
    return safetensors.torch.load_file(last / MODEL_FILE)


@pytest.fixture(scope="module")
def whole(tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    """A run of three epochs in one go."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(tiny, folder)


class Crashed(Exception):
    pass


def stop_after_the_first_epoch(config: Config, folder: Path, _: pytest.MonkeyPatch) -> None:
    def report(_: Row) -> None:
        raise Crashed

    train(config, folder, ALONE, Recorder(report))


def stop_within_the_second_epoch(config: Config, folder: Path, patch: pytest.MonkeyPatch) -> None:
    def rates(
        optimizer: torch.optim.Optimizer, config: TrainingConfig, done: int, steps: int
    ) -> None:
        if done == steps + 2:
            raise Crashed
        set_learning_rates(optimizer, config, done, steps)

    patch.setattr(loop, "set_learning_rates", rates)
    train(config, folder, ALONE, Recorder())


def stop_before_the_table_is_written(
    config: Config, folder: Path, patch: pytest.MonkeyPatch
) -> None:
    def written(*_: object) -> None:
        raise Crashed

    patch.setattr("raymed.training.log.write_metrics", written)
    train(config, folder, ALONE, Recorder())


@pytest.mark.parametrize(
    "stop",
    [
        stop_after_the_first_epoch,
        stop_within_the_second_epoch,
        stop_before_the_table_is_written,
    ],
)
def test_a_resumed_run_ends_where_the_uninterrupted_one_ends(
    tiny: Config,
    whole: tuple[Path, list[Row]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: Callable[[Config, Path, pytest.MonkeyPatch], None],
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Crashed):
        stop(tiny, tmp_path, patch)
    assert [path.name for path in checkpoints_of(tmp_path).iterdir()] == ["epoch-0001"]
    # Another stream of random numbers than the first time.
    torch.manual_seed(1234)
    resumed = run(tiny, tmp_path)
    folder, rows = whole
    assert untimed(resumed) == untimed(rows[1:])
    assert untimed(read_metrics(tmp_path / METRICS_FILE)) == untimed(rows)
    ours, expected = last_weights(tmp_path), last_weights(folder)
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    last = latest(tmp_path)
    assert last is not None
    assert untimed(Checkpoint.open(last).history) == untimed(rows)


def test_a_finished_run_stays_as_it_is(tiny: Config, whole: tuple[Path, list[Row]]) -> None:
    folder, _ = whole
    before = {path: path.stat().st_mtime_ns for path in checkpoints_of(folder).rglob("*")}
    assert run(tiny, folder) == []
    after = {path: path.stat().st_mtime_ns for path in checkpoints_of(folder).rglob("*")}
    assert after == before


def test_metrics_of_an_epoch(tiny: Config, whole: tuple[Path, list[Row]]) -> None:
    folder, rows = whole
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert read_metrics(folder / METRICS_FILE) == rows
    for row in rows:
        parts = [row[f"loss_{name}"] for name in ("tag", "sent", "word", "attention")]
        assert row["loss"] == pytest.approx(sum(parts), rel=1e-6)
        assert row["images_per_second"] > 0
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert list((folder / "tensorboard").iterdir())
    # The scores of the last epoch, from its checkpoint, one image at a time.
    last = latest(folder)
    assert last is not None
    checkpoint = Checkpoint.open(last)
    model = checkpoint.build_model()
    split = PreparedDataset.open(tiny.data.path).split("val")
    reports = []
    for row in range(len(split)):
        image = torch.from_numpy(split.pixels(np.array([row])))
        reports += generate(model, image, tiny.generation).reports(checkpoint.vocabulary)
    texts = [report.text for report in reports]
    assert rows[-1]["cider"] == pytest.approx(cider(split.references, texts))
    for row, best in zip(rows, np.maximum.accumulate([r["cider"] for r in rows]), strict=True):
        assert (row["score"], row["best_score"]) == (row["cider"], best)
    assert rows[-1]["distinct"] == len(set(texts))
    recalls = [
        len(set(tags) & {tag for tag, _ in report.tags[:5]}) / len(tags)
        for tags, report in zip(split.tags, reports, strict=True)
    ]
    assert rows[-1]["recall_5"] == pytest.approx(sum(recalls) / len(recalls))


def test_loss_of_an_epoch_is_the_mean_over_its_images(tiny: Config, tmp_path: Path) -> None:
    # In one batch of everything the loss is that of the initial weights.
    config = tiny.override(
        {
            "training.batch_size": 100,
            "training.epochs": 1,
            "model.dropout": 0.0,
            "loss.word": 0.3,
            "loss.label_smoothing": 0.2,
        }
    )
    (row,) = run(config, tmp_path)
    dataset = PreparedDataset.open(config.data.path)
    vocabulary = Vocabulary.most_frequent(dataset.words, dataset.tags, config.data.vocabulary)
    split = TokenisedSplit(dataset.split("train"), vocabulary, 12, 30)
    torch.manual_seed(config.training.seed)
    encoder = build_encoder(config.model.encoder)
    model = build_system(config.model, len(dataset.tags), len(vocabulary), encoder)
    with torch.no_grad():
        feature_maps = encoder.feature_map(split.images(np.arange(len(split))))
        scale = feature_maps.square().mean().sqrt()
        encoder.hidden_scale.copy_(scale)
        model.visual_scale.copy_(scale)
        model.feature_scale.copy_(encoder.overall(feature_maps).square().mean().sqrt())
    sums = dict.fromkeys((f.name for f in fields(LossTerms)), 0.0)
    for image in range(len(split)):
        batch = split.batch(np.array([image]), np.array([0]), np.ones(1, np.float32))
        found = loss_terms(model(batch.images, model.passages(batch.reports)), batch, 0.2)
        for name in sums:
            sums[name] += getattr(found, name).item() / len(split)
    for name, mean in sums.items():
        assert row[f"loss_{name}"] == pytest.approx(mean, rel=1e-5)
    expected = sums["tag"] + sums["sent"] + 0.3 * sums["word"] + sums["attention"]
    assert row["loss"] == pytest.approx(expected, rel=1e-5)


def test_validation_images_are_the_first_ones(tiny: Config, tmp_path: Path) -> None:
    config = tiny.override({"data.validation_images": 1, "training.epochs": 1})
    (row,) = run(config, tmp_path)
    assert row["distinct"] == 1
    assert row["cider"] == 0  # as of any single pair


def test_a_checkpoint_opens_without_the_dataset(
    tiny: Config, phantom: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "prepared"
    shutil.copytree(phantom, copy)
    run(tiny.override({"data.path": str(copy), "training.epochs": 1}), tmp_path / "run")
    shutil.rmtree(copy)
    checkpoint = Checkpoint.open(tmp_path / "run")
    image = torch.zeros(1, checkpoint.image_size, checkpoint.image_size, dtype=torch.uint8)
    generated = generate(checkpoint.build_model(), image, checkpoint.config.generation)
    (report,) = generated.reports(checkpoint.vocabulary)
    assert report.text
    assert len(report.tags) == len(checkpoint.vocabulary.tags)


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        ({"loss.word": 1e300}, "epoch 1, step 1: .*word [0-9.]+"),
        ({"training.learning_rate": 1e30, "training.clip_norm": 1e30}, "epoch 1, step 2: .*nan"),
    ],
)
def test_divergence_names_epoch_step_and_terms(
    tiny: Config, tmp_path: Path, overrides: dict[str, float], where: str
) -> None:
    with pytest.raises(TrainingFailed, match=f"training diverged at {where}") as raised:
        run(tiny.override(overrides), tmp_path)
    for name in ("tag", "sent", "word", "attention"):
        assert f"{name} " in str(raised.value)
    assert latest(tmp_path) is None


def test_a_full_disk_is_reported_and_the_run_resumes_once_there_is_space(
    tiny: Config,
    whole: tuple[Path, list[Row]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, calls = safetensors.torch.save_file, []

    def full_from_the_second(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments)

    recorder = Recorder()
    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full_from_the_second)
        # It trains to its end and warns each time, but must not end as if nothing were wrong.
        with pytest.raises(TrainingFailed, match=r"epoch-0003: .*no space left"):
            train(tiny, tmp_path, ALONE, recorder)
    assert len(recorder.rows) == 3
    assert [text.partition(":")[0][-10:] for text in recorder.warnings] == [
        "epoch-0002",
        "epoch-0003",
    ]
    assert [path.name for path in checkpoints_of(tmp_path).iterdir()] == ["epoch-0001"]
    run(tiny, tmp_path)
    ours, expected = last_weights(tmp_path), last_weights(whole[0])
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_a_disk_that_was_full_for_a_moment_costs_only_a_warning(
    tiny: Config,
    whole: tuple[Path, list[Row]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, calls = Path.replace, []

    def full_at_first(self: Path, target: Path) -> Path:
        if target.name == METRICS_FILE:
            calls.append(target)
            if len(calls) == 1:
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", full_at_first)
    recorder = Recorder()
    train(tiny, tmp_path, ALONE, recorder)
    assert len(recorder.warnings) == 1
    assert "metrics cannot be written (No space left on device)" in recorder.warnings[0]
    assert untimed(read_metrics(tmp_path / METRICS_FILE)) == untimed(whole[1])


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize(("epoch", "step"), [(1, 1), (1, 3), (2, 2), (3, 4)])
def test_a_run_interrupted_at_a_step_resumes_from_it(
    tiny: Config, whole: tuple[Path, list[Row]], tmp_path: Path, epoch: int, step: int, every: int
) -> None:
    config = tiny.override({"launch.checkpoint_steps": every, "launch.keep_checkpoints": 1})

    def end(status: Status) -> bool:
        return (status.epoch, status.done) == (epoch, step)

    recorder = Recorder(at_step=end)
    with pytest.raises(Interrupted):
        train(config, tmp_path, ALONE, recorder)
    last = latest(tmp_path)
    assert last is not None
    assert last.name == f"epoch-{epoch:04d}-step-{step:06d}"
    assert recorder.statuses[-1].done == step
    resumed = Recorder()
    train(config, tmp_path, ALONE, resumed)
    steps = [(status.epoch, status.done) for status in resumed.statuses]
    # After the very last step only the validation is left to be done.
    assert steps[:1] == ([] if (epoch, step) == (3, 4) else [(epoch, step + 1)])
    recorder.rows += resumed.rows
    assert untimed(recorder.rows) == untimed(whole[1])
    ours, expected = last_weights(tmp_path), last_weights(whole[0])
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_a_run_interrupted_while_validating_repeats_no_step(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, whole = Recorder(), Recorder()
    real = loop.validate
    batches = 0

    def asked_after_the_first_batch(*arguments: Any) -> Any:
        *others, during = arguments

        def counted() -> None:
            nonlocal batches
            batches += 1
            recorder.ends = True
            during()

        return real(*others, counted)

    # Three validation images in as many batches.
    config = tiny.override({"training.batch_size": 1, "training.epochs": 2})
    train(config, tmp_path / "whole", ALONE, whole)
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate", asked_after_the_first_batch)
        with pytest.raises(Interrupted):
            train(config, folder, ALONE, recorder)
    assert batches == 1
    last = latest(folder)
    assert last is not None
    assert last.name == "epoch-0001-step-000024"
    resumed = Recorder()
    train(config, folder, ALONE, resumed)
    assert resumed.statuses[0].epoch == 2
    assert untimed(resumed.rows) == untimed(whole.rows)
    ours, expected = last_weights(folder), last_weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_config_errors_name_the_key(tiny: Config) -> None:
    tags = len(PreparedDataset.open(tiny.data.path).tags)
    assert check(tiny.override({"model.top_tags": tags})).info.image_size == 32
    with pytest.raises(UsageError, match=f"model.top_tags: .*set it to {tags} at most"):
        check(tiny.override({"model.top_tags": tags + 1}))
    with pytest.raises(UsageError, match="not a prepared dataset"):
        check(tiny.override({"data.path": "nowhere"}))


def test_optimizer_groups(tiny: Config) -> None:
    model = build_system(tiny.model, 5, 9, build_encoder(tiny.model.encoder))
    config = TrainingConfig(learning_rate=1e-3, encoder_learning_rate=1e-5, weight_decay=0.1)
    groups = build_optimizer(model, config).param_groups
    found = {
        id(p): (group["base_rate"], group["weight_decay"])
        for group in groups
        for p in group["params"]
    }
    assert sum(len(group["params"]) for group in groups) == len(found)
    for name, p in model.named_parameters():
        network = name.startswith("encoder.")
        matrix = (
            (name.endswith("weight") and p.ndim > 1) or "weight_ih" in name or "weight_hh" in name
        )
        assert found[id(p)] == (1e-5 if network else 1e-3, 0.1 if matrix else 0.0), name
    model.encoder.requires_grad_(False)
    frozen = build_optimizer(model, config).param_groups
    ids = {id(p) for group in frozen for p in group["params"]}
    assert ids == {id(p) for p in model.parameters() if p.requires_grad}


def test_learning_rates_rise_and_fall() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    groups = [{"params": [parameter], "base_rate": 2.0}]
    optimizer = torch.optim.AdamW(groups)
    config = TrainingConfig(epochs=5, warmup=0.2, final_rate=0.1)
    rates = []
    for done in range(50):
        set_learning_rates(optimizer, config, done, steps=10)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:10] == pytest.approx([2.0 * k / 10 for k in range(1, 11)])
    cosine = [0.5 * (1 + math.cos(math.pi * k / 40)) for k in range(1, 41)]
    assert rates[10:] == pytest.approx([2.0 * (0.1 + 0.9 * c) for c in cosine])
    set_learning_rates(
        optimizer, TrainingConfig(epochs=5, warmup=0, final_rate=1), done=3, steps=10
    )
    assert optimizer.param_groups[0]["lr"] == 2.0
