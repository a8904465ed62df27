"""`raymed.load`: reports of images in memory are those of the files."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import raymed
from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.generation import generate
from raymed.prediction import predict
from raymed.training.checkpoint import Checkpoint
from tests.support.study_films import prepare_studies


@pytest.fixture(scope="module")
def films(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The pixels of the training films, by the files that contain them."""
    folder = tmp_path_factory.mktemp("films")
    split = PreparedDataset.open(phantom).split("train")
    pixels = split.pixels(np.arange(len(split)))
    files = [str(folder / f"film-{number}.png") for number in range(len(split))]
    for file, film in zip(files, pixels, strict=True):
        Image.fromarray(film).save(file)
    return dict(zip(files, pixels, strict=True))


@pytest.fixture(scope="module")
def model(trained: Path) -> raymed.Model:
    return raymed.load(trained, quiet=True)


def test_the_report_is_the_generated_one(
    model: raymed.Model, trained: Path, films: dict[str, np.ndarray]
) -> None:
    checkpoint = Checkpoint.open(trained)
    pixels = torch.from_numpy(np.stack(list(films.values())))
    written = generate(checkpoint.build_model(), pixels, checkpoint.config.generation)
    expected = written.reports(checkpoint.vocabulary)
    assert len({report.text for report in expected}) > 1
    assert model.config == checkpoint.config
    by_file = model.predict(list(films))
    in_memory = [*map(Image.fromarray, list(films.values())[:2]), *list(films.values())[2:]]
    for found in (by_file, model.predict(in_memory)):
        assert [one.report.sentences for one in found] == [one.sentences for one in expected]
        for one, other in zip(found, expected, strict=True):
            assert dict(one.report.tags) == pytest.approx(dict(other.tags), rel=1e-4)
            assert [sentence.text for sentence in one.sentences] == other.sentences
            assert all(s.alpha.sum() == pytest.approx(1, abs=1e-4) for s in one.sentences)
    assert [one.image for one in by_file] == [Path(file).name for file in films]
    single = model.predict(list(films)[3])
    assert isinstance(single, raymed.Prediction)
    assert str(single) == expected[3].text
    assert repr(single) == f"Prediction('film-3.png': {expected[3].text!r})"
    assert model.predict([]) == []


def test_a_stream_holds_no_more_than_a_batch(
    model: raymed.Model, films: dict[str, np.ndarray]
) -> None:
    taken = []

    def source() -> Iterator[np.ndarray]:
        for number in range(1000):
            taken.append(number)
            yield list(films.values())[number % len(films)]

    stream = model.stream(source())
    first = next(stream)
    assert first.image == "images[0]"
    assert len(taken) == model.config.training.batch_size
    again = model.predict(next(iter(films.values()))).report
    assert first.report.sentences == again.sentences
    assert dict(first.report.tags) == pytest.approx(dict(again.tags), rel=1e-4)


def test_the_figure_is_the_one_that_the_command_writes(
    model: raymed.Model, trained: Path, films: dict[str, np.ndarray], tmp_path: Path
) -> None:
    file = next(iter(films))
    checkpoint = Checkpoint.open(trained)
    (written,) = predict(checkpoint, checkpoint.config, [file], tmp_path)
    with Image.open(written.figure) as expected:
        found = model.predict(file).draw()
        assert np.array_equal(np.asarray(found), np.asarray(expected))
    with_truth = model.predict(file).draw(truth="no effusion.")
    assert with_truth.height > found.height
    assert written.draw().size == found.size


def test_progress_is_shown_on_the_console(
    trained: Path, films: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(record=True, force_terminal=True, width=80)
    raymed.load(trained, console=console).predict(list(films))
    assert "writing reports" in console.export_text()
    capsys.readouterr()
    raymed.load(trained, quiet=True).predict(list(films))
    assert capsys.readouterr() == ("", "")


def test_settings_of_generation_apply(trained: Path) -> None:
    for settings in ({"generation.max_sentences": 1}, ["generation.max_sentences=1"]):
        model = raymed.load(trained, settings, quiet=True)
        assert len(model.predict(np.zeros((32, 32), np.uint8)).sentences) == 1
    with pytest.raises(raymed.UsageError, match=r"loss.tag: cannot be set here; only generation"):
        raymed.load(trained, {"loss.tag": 2})
    assert repr(model) == f"Model({str(Checkpoint.open(trained).path)!r}: co_attention)"


def test_what_cannot_be_read_is_named_by_its_index(
    model: raymed.Model, films: dict[str, np.ndarray]
) -> None:
    file = next(iter(films))
    with pytest.raises(raymed.UsageError, match=r"^images\[1\]: gone.png: no such image file"):
        model.predict([file, "gone.png"])
    stream = model.stream(iter([file] * 4 + [np.zeros((2, 2))]))
    found = []
    with pytest.raises(raymed.UsageError, match=r"^images\[4\]: only uint8"):
        found.extend(stream)
    assert len(found) == 4
    words = r"^image: 2 images of one study, but this run reads 1 to 1 .* a list, and"
    with pytest.raises(raymed.UsageError, match=words):
        model.predict((file, file))


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(raymed.UsageError, match="not a checkpoint"):
        raymed.load(tmp_path)


def test_the_images_of_a_study_are_a_tuple(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prepare_studies(tmp_path / "prepared", 20)
    settings = {
        "data.path": tmp_path / "prepared",
        "data.images_per_study": 2,
        "run.folder": tmp_path / "runs",
        "training.epochs": 1,
    }
    model = raymed.load(raymed.train(tiny, settings, quiet=True), quiet=True)
    one, other = PreparedDataset.open(tmp_path / "prepared").split("train").pixels(np.arange(2))
    Image.fromarray(one).save(tmp_path / "one.png")
    study = model.predict((tmp_path / "one.png", other))
    assert study.image == "one.png,image[1]"
    assert study.pictures.shape == (2, *one.shape)
    alone, both = model.predict([one, [one, other]])
    assert both.report.sentences == study.report.sentences
    assert dict(both.report.tags) == pytest.approx(dict(study.report.tags), rel=1e-4)
    assert dict(alone.report.tags) != pytest.approx(dict(study.report.tags), rel=1e-4)
    for images, count in (((one, other, one), 3), ((), 0)):
        words = f"{count} images of one study, but this run reads 1 to 2"
        with pytest.raises(raymed.UsageError, match=words):
            model.predict(images)
