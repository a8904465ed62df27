"""Predicting needs the checkpoint and the image, nothing else."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from raymed.data.dataset import PreparedDataset
from raymed.data.phantom import draw
from raymed.errors import UsageError
from raymed.generation import generate
from raymed.prediction import predict, predict_rows, print_prediction
from raymed.training.checkpoint import Checkpoint


@pytest.fixture
def alone(trained, tmp_path):
    """A checkpoint copied away, whose configuration names a data set that is not there."""
    shutil.copytree(Checkpoint.open(trained).path, tmp_path / "checkpoint")
    checkpoint = Checkpoint.open(tmp_path / "checkpoint")
    return checkpoint, checkpoint.config.override({"data.path": str(tmp_path / "nowhere")})


@pytest.fixture
def film(tmp_path):
    (example,) = draw(1, seed=5, image_size=32)
    path = tmp_path / "film.png"
    Image.fromarray(example.image).save(path)
    return path, example.image


def test_the_report_is_the_generated_one(alone, film, tmp_path):
    checkpoint, config = alone
    path, pixels = film
    (prediction,) = predict(checkpoint, config, [str(path)], tmp_path / "out")
    model = checkpoint.build_model()
    generated = generate(model, torch.from_numpy(pixels)[None], config.generation)
    assert prediction.report == generated.reports(checkpoint.vocabulary)[0]
    assert sum(share for _, share in prediction.report.tags) == pytest.approx(1, abs=1e-5)


def test_the_figure_shows_image_and_attention(alone, film, tmp_path):
    checkpoint, config = alone
    (prediction,) = predict(checkpoint, config, [str(film[0])], tmp_path / "out")
    assert prediction.figure == tmp_path / "out" / "film-attention.png"
    picture = np.asarray(Image.open(prediction.figure).convert("RGB")).astype(int)
    assert min(picture.shape[:2]) > 300
    # The image itself is grey; only where attention is painted over it is there colour.
    colourful = np.ptp(picture, axis=2) > 40
    assert 0.001 < colourful.mean() < 0.9


def test_rows_of_a_split_give_the_same_reports_as_their_images(alone, phantom, tmp_path):
    checkpoint, config = alone
    test = PreparedDataset.open(phantom).split("test")
    for row in (0, 1):
        path = tmp_path / f"{row}.png"
        Image.fromarray(test.pixels(np.array([row]))[0]).save(path)
    files = [str(tmp_path / f"{row}.png") for row in (0, 1)]
    by_file = predict(checkpoint, config, files, tmp_path / "a")
    by_row = predict_rows(checkpoint, config, test, [0, 1], tmp_path / "b")
    for one, other in zip(by_file, by_row, strict=True):
        assert one.report == other.report


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n half"])
def test_what_is_no_image_is_refused_by_name(alone, tmp_path, content):
    checkpoint, config = alone
    bad = tmp_path / "bad.png"
    bad.write_bytes(content)
    with pytest.raises(UsageError, match=r"bad\.png: .*give a PNG, JPEG, TIFF or DICOM"):
        list(predict(checkpoint, config, [str(bad)], tmp_path))


def test_a_missing_image_is_refused_by_name(alone, tmp_path):
    checkpoint, config = alone
    with pytest.raises(UsageError, match=r"gone\.png: no such image file"):
        list(predict(checkpoint, config, [str(tmp_path / "gone.png")], tmp_path))


def test_two_images_of_one_name_get_a_figure_each(alone, film, tmp_path):
    checkpoint, config = alone
    files = []
    for case in ("a", "b"):
        (tmp_path / case).mkdir()
        files.append(shutil.copy(film[0], tmp_path / case / "film.png"))
    one, other = predict(checkpoint, config, files, tmp_path / "out")
    assert one.figure.name == "film-attention.png"
    assert other.figure.name == "film-2-attention.png"
    assert one.figure.is_file()
    assert other.figure.is_file()


def test_a_name_is_printed_as_it_is(alone, film, tmp_path, capsys):
    checkpoint, config = alone
    # To rich this is markup, and to matplotlib a formula that it cannot read.
    path = shutil.copy(film[0], tmp_path / "[bold]$_{$.png")
    (prediction,) = predict(checkpoint, config, [str(path)], tmp_path / "out")
    print_prediction(prediction, Console(width=40))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[bold]$_{$.png"
    assert lines[-1] == f"  attention: {prediction.figure}"
    assert lines[2:-1] == [f"  {sentence}".rstrip() for sentence in prediction.report.sentences]
