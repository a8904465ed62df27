"""A run that reads several images of a study: trained, scored, used for prediction and drawn."""

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raymed.config import Config
from raymed.data.batches import TokenisedSplit
from raymed.data.dataset import PreparedDataset
from raymed.data.studies import StudySplit
from raymed.errors import UsageError
from raymed.evaluation import evaluate
from raymed.figures import make_figure
from raymed.generation import generate
from raymed.image_tensors import StudyImages
from raymed.localisation import measure_attention
from raymed.metrics.baselines import best_constant
from raymed.model.encoder import build_encoder
from raymed.prediction import predict, predict_rows
from raymed.training.checkpoint import Checkpoint, latest
from raymed.training.loop import train
from raymed.training.loss import LossTerms, loss_terms
from raymed.training.setup import Setup, set_up
from raymed.training.worker import Worker
from tests.support.recording import Recorder
from tests.support.study_films import prepare_studies

ALONE = Worker(torch.device("cpu"))


@pytest.fixture(scope="module")
def config(tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    folder = tmp_path_factory.mktemp("studies")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        prepare_studies(folder / "prepared", 20)
        yield tiny.override(
            {
                "data.path": str(folder / "prepared"),
                "data.images_per_study": 2,
                "run.folder": str(folder / "runs"),
                "training.epochs": 1,
            }
        )


@pytest.fixture(scope="module")
def trained(config: Config) -> tuple[Checkpoint, Recorder]:
    recorder, folder = Recorder(), Path(config.run.folder) / "run"
    train(config, folder, ALONE, recorder)
    last = latest(folder)
    assert last is not None
    return Checkpoint.open(last), recorder


@pytest.fixture(scope="module")
def checkpoint(trained: tuple[Checkpoint, Recorder]) -> Checkpoint:
    return trained[0]


def split_of(config: Config, name: str) -> StudySplit:
    return StudySplit(PreparedDataset.open(config.data.path).split(name), 2)


def set_up_run(config: Config, folder: Path) -> Setup:
    return set_up(config, folder, ALONE, Recorder())


def opened(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture)


def test_images_that_are_not_read_are_counted_once(
    config: Config, trained: tuple[Checkpoint, Recorder]
) -> None:
    by_image = PreparedDataset.open(config.data.path).split("train")
    counts = [list(by_image.studies).count(study) for study in set(by_image.studies)]
    three = counts.count(3)
    assert three > 0
    said = [line for line in trained[1].warnings if "images_per_study" in line]
    assert said == [
        f"data.images_per_study=2: {three} of {len(counts)} training studies have more images; "
        f"their first 2 are read, the other {three} images are not"
    ]


def test_where_no_study_has_several_images_it_is_said(tiny: Config, tmp_path: Path) -> None:
    recorder = Recorder()
    set_up(tiny.override({"data.images_per_study": 2}), tmp_path, ALONE, recorder)
    assert any("no training study has more than one image" in each for each in recorder.warnings)


def test_the_loss_of_a_batch_is_that_of_its_studies_one_by_one(
    config: Config, tmp_path: Path
) -> None:
    run = set_up_run(config, tmp_path)
    model, split = run.model.eval(), run.training
    with torch.no_grad():
        assert model.side_by_side is not None
        assert model.side_by_side.positions is not None
        model.side_by_side.positions.normal_()

    def terms(numbers: list[int]) -> LossTerms:
        count = len(numbers)
        weights = np.full(count, 1 / count, np.float32)
        batch = split.batch(np.array(numbers), np.arange(count), weights)
        with torch.no_grad():
            return loss_terms(model(batch.images, model.passages(batch.reports)), batch, 0.0)

    together, alone = terms([0, 1, 2, 3]), [terms([number]) for number in range(4)]
    for field in fields(LossTerms):
        each = torch.cat([getattr(one, field.name) for one in alone])
        torch.testing.assert_close(getattr(together, field.name), each, rtol=1e-4, atol=1e-5)


def test_cached_features_are_those_of_the_images(config: Config, tmp_path: Path) -> None:
    frozen = set_up_run(config.override({"model.train_encoder": "none"}), tmp_path)
    batch = frozen.training.images(np.array([4, 1, 2]))
    assert isinstance(batch, StudyImages)
    pixels = TokenisedSplit(split_of(config, "train"), frozen.training.vocabulary, 3, 9).images(
        np.array([4, 1, 2])
    )
    assert isinstance(pixels, StudyImages)
    assert torch.equal(batch.places, pixels.places)
    assert torch.equal(batch.present, pixels.present)
    torch.manual_seed(config.training.seed)
    encoder = build_encoder("small").eval()
    with torch.no_grad():
        for cached, computed in zip(batch.images, encoder(pixels.images), strict=True):
            torch.testing.assert_close(cached, computed.half(), rtol=2e-3, atol=1e-3)
    recorder = Recorder()
    train(frozen.config, tmp_path, ALONE, recorder)
    assert len(recorder.rows) == 1


def test_a_second_stage_reads_the_same_images(
    config: Config, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    recorder = Recorder()
    stage = {"training.objective": "cider", "training.start_from": str(checkpoint.path)}
    train(config.override({**stage, "tune.free_top_tags": True}), tmp_path, ALONE, recorder)
    (row,) = recorder.rows
    assert row["reward"] >= 0
    last = latest(tmp_path)
    assert last is not None
    weights = [Checkpoint.open(each).build_model().state_dict() for each in (checkpoint.path, last)]
    name = "side_by_side.positions"
    assert weights[1][name].shape == (2, 128)
    assert not torch.equal(weights[0][name], weights[1][name])


def test_scores_and_baselines_are_by_study(
    config: Config, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    found = evaluate(checkpoint, checkpoint.config, "val", tmp_path)
    split, training = split_of(config, "val"), split_of(config, "train")
    assert found.studies == len(split)
    assert found.images == len(split.by_image) > len(split)
    rows = pq.read_table(tmp_path / "predictions.parquet").to_pydict()
    assert rows["image_id"] == list(split.image_ids)
    assert rows["study"] == list(split.studies)
    assert rows["reference"] == list(split.references)
    assert set(rows["constant_report"]) == {best_constant(list(training.references))}
    assert {*rows["nearest_report"], *rows["nearest_by_features_report"]} <= {*training.references}

    encoder = checkpoint.build_model().encoder
    assert encoder is not None

    def means(split: StudySplit) -> list[np.ndarray]:
        with torch.no_grad():
            maps = [encoder.feature_map(torch.from_numpy(p)) for p in split.pictures(all_of(split))]
        pooled = [each.mean(dim=(2, 3)).numpy().astype(float) for each in maps]
        return [np.mean([row / np.linalg.norm(row) for row in each], axis=0) for each in pooled]

    def all_of(split: StudySplit) -> np.ndarray:
        return np.arange(len(split))

    keys = means(training)
    for vector, report in zip(means(split), rows["nearest_by_features_report"], strict=True):
        distances = [((vector - key) ** 2).sum() for key in keys]
        assert report == training.references[int(np.argmin(distances))]
    assert measure_attention(checkpoint, checkpoint.config, "val", tmp_path) is None


@pytest.fixture
def files(config: Config, tmp_path: Path) -> list[Path]:
    """The two images of a study."""
    split = split_of(config, "train")
    study = next(n for n in range(len(split)) if len(split.rows_of(n)) == 2)
    paths = [tmp_path / name for name in ("one.png", "other.png")]
    for path, picture in zip(paths, split.pictures(np.array([study]))[0], strict=True):
        Image.fromarray(picture).save(path)
    return paths


def test_a_study_is_predicted_from_its_images(
    config: Config, checkpoint: Checkpoint, files: list[Path], tmp_path: Path
) -> None:
    given, out = [",".join(map(str, files)), str(files[1])], tmp_path / "out"
    found = list(predict(checkpoint, checkpoint.config, given, out))
    assert [one.image for one in found] == ["one.png,other.png", "other.png"]
    assert [one.figure.name for one in found] == ["one-attention.png", "other-attention.png"]
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == given
    model = checkpoint.build_model()
    pixels = torch.from_numpy(np.stack([opened(file) for file in files]))
    for one, (pictures, count) in zip(found, ((pixels, 2), (pixels[1:], 1)), strict=True):
        images = StudyImages.of(pictures, torch.tensor([count]), 2)
        written = generate(model, images, checkpoint.config.generation)
        (expected,) = written.reports(checkpoint.vocabulary)
        assert one.report.sentences == expected.sentences
        # In a batch of another size the last digits may differ.
        assert dict(one.report.tags) == pytest.approx(dict(expected.tags), rel=1e-4)
    heights = [len(opened(one.figure)) for one in found]
    assert heights[0] > heights[1], "two films below each other are taller than one"

    split = split_of(config, "train")
    (by_row,) = predict_rows(checkpoint, checkpoint.config, split.by_image, [0], tmp_path / "rows")
    assert by_row.image == split.image_ids[0]


def test_more_images_than_the_run_reads_are_refused(
    checkpoint: Checkpoint, files: list[Path], tmp_path: Path
) -> None:
    three = ",".join(map(str, [*files, files[0]]))
    with pytest.raises(UsageError, match="3 images, but this run reads 2 of a study") as raised:
        list(predict(checkpoint, checkpoint.config, [three, str(files[0])], tmp_path / "out"))
    assert "the reports of the other 1 are in" in str(raised.value)
    study = f"{files[0]},{tmp_path / 'missing.png'}"
    with pytest.raises(UsageError, match=r"missing\.png: no such image file"):
        list(predict(checkpoint, checkpoint.config, [study], tmp_path / "other"))


def test_figures_show_all_images_of_a_study(
    config: Config, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    split, run = split_of(config, "test"), str(checkpoint.path)
    study = next(n for n in range(len(split)) if len(split.rows_of(n)) == 2)
    name = split.image_ids[study].split(",")[1]
    files = make_figure("4", [run], None, "test", name, tmp_path)
    stem = Path(split.image_ids[study].split(",")[0]).stem
    assert [file.name for file in files] == [f"figure-4-{stem}.png", "figure-4.html"]
    page = files[-1].read_text()
    assert f"<h2>{split.image_ids[study]}</h2>" in page
    assert f"Image 2 of {split.image_ids[study]}" in page
    (picture, other) = make_figure("3", [run, run], None, "test", name, tmp_path)
    assert len(opened(picture)) > 300
    assert other.read_text().count('<img class="film"') == 2
    with pytest.raises(UsageError, match=f"no image 'x' in split test; its first is '{stem[:3]}"):
        make_figure("4", [run], None, "test", "x", tmp_path / "none")


def test_a_run_starts_only_from_one_that_reads_as_many_images(
    config: Config, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    other = {"data.images_per_study": 3, "training.start_from": str(checkpoint.path)}
    with pytest.raises(UsageError, match=r"set data\.images_per_study=2, or start from another"):
        set_up_run(config.override(other), tmp_path)
