"""Predicting needs the checkpoint and the image, nothing else."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from raymed.data.dataset import PreparedDataset
from raymed.data.sources.phantom import draw
from raymed.errors import UsageError
from raymed.generation import generate
from raymed.notices import NOT_FOR_CLINICAL_USE
from raymed.prediction import predict, predict_rows, print_prediction
from raymed.training.checkpoint import Checkpoint


@pytest.fixture
def alone(trained, tmp_path):
    """A checkpoint copied away, whose configuration names a dataset that is not there."""
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
def test_a_file_that_is_not_an_image_is_named(alone, tmp_path, content):
    checkpoint, config = alone
    bad = tmp_path / "bad.png"
    bad.write_bytes(content)
    with pytest.raises(UsageError, match=r"bad\.png: .*give a PNG, JPEG, TIFF or DICOM"):
        list(predict(checkpoint, config, [str(bad)], tmp_path))


def test_several_images_of_a_study_are_refused_by_a_run_of_single_ones(alone, film, tmp_path):
    checkpoint, config = alone
    study = f"{film[0]},{film[0]}"
    with pytest.raises(UsageError, match="2 images, but this run reads 1 of a study"):
        list(predict(checkpoint, config, [study], tmp_path / "out"))
    # Together longer than the name of a file may be.
    names = ",".join(["x" * 90] * 3)
    with pytest.raises(UsageError, match="3 images, but this run reads 1 of a study"):
        list(predict(checkpoint, config, [names], tmp_path / "out"))
    own = shutil.copy(film[0], tmp_path / "a,b.png")
    (found,) = predict(checkpoint, config, [str(own)], tmp_path / "out")
    assert (found.image, found.figure.name) == ("a,b.png", "a,b-attention.png")


def test_a_missing_image_is_named(alone, tmp_path):
    checkpoint, config = alone
    with pytest.raises(UsageError, match=r"gone\.png: no such image file"):
        list(predict(checkpoint, config, [str(tmp_path / "gone.png")], tmp_path))


def test_two_images_of_the_same_name_get_a_figure_each(alone, film, tmp_path):
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
    assert lines[-2:] == [f"  attention: {prediction.figure}", f"  {NOT_FOR_CLINICAL_USE}"]
    assert lines[2:-2] == [f"  {sentence}".rstrip() for sentence in prediction.report.sentences]


def lines_of(out):
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def films_in(folder, names, seed=7):
    """Different films under these names."""
    for name, example in zip(names, draw(len(names), seed=seed, image_size=32), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(example.image).save(folder / name, "PNG")


def test_a_folder_stands_for_all_images_in_it_and_its_subfolders(alone, tmp_path):
    checkpoint, config = alone
    folder = tmp_path / "films"
    names = ["b.png", "a.PNG", "below/deeper/c.png", "no-ending"]
    films_in(folder, [*names, ".hidden.png", "out/earlier.png"])
    (folder / "notes.txt").write_text("no image")
    (folder / "empty").touch()
    messages = []
    found = list(predict(checkpoint, config, [str(folder)], folder / "out", messages.append))
    wanted = ["a.PNG", "b.png", "no-ending", "below/deeper/c.png"]
    assert [one["image"] for one in lines_of(folder / "out")] == [str(folder / n) for n in wanted]
    assert [one.image for one in found] == [name.rpartition("/")[2] for name in wanted]
    assert messages == ["skipped 2 file(s): not images by name or content"]


def test_a_folder_without_an_image_is_named(alone, film, tmp_path):
    checkpoint, config = alone
    (tmp_path / "empty" / "below").mkdir(parents=True)
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    with pytest.raises(UsageError, match=r"empty: no image in this folder or its subfolders$"):
        list(predict(checkpoint, config, [str(tmp_path / "empty"), str(film[0])], tmp_path / "out"))
    assert [one["image"] for one in lines_of(tmp_path / "out")] == [str(film[0])]


def test_a_line_contains_the_report(alone, tmp_path):
    checkpoint, config = alone
    films_in(tmp_path, ["a.png", "b.png", "c.png"])
    files = [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    config = config.override({"training.batch_size": 2})
    found = list(predict(checkpoint, config, files, tmp_path / "out"))
    lines = lines_of(tmp_path / "out")
    for file, prediction, line in zip(files, found, lines, strict=True):
        report = prediction.report
        assert line == {
            "image": file,
            "tags": [{"tag": tag, "probability": share} for tag, share in report.tags[:20]],
            "report": " ".join(filter(None, report.sentences)),
            "sentences": report.sentences,
            "figure": prediction.figure.name,
        }
    record = json.loads((tmp_path / "out" / "made_from.json").read_text())["made_from"]
    assert record["data"] is None
    assert record["checkpoint"]["path"] == str(checkpoint.path)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_bad_images_are_named_and_the_others_are_written(alone, tmp_path, batch):
    checkpoint, config = alone
    films_in(tmp_path, ["a.png", "half.png", "c.png", "d.png"])
    (tmp_path / "half.png").write_bytes((tmp_path / "half.png").read_bytes()[:99])
    names = ["gone.png", "a.png", "half.png", "c.png", "d.png"]
    files = [str(tmp_path / name) for name in names]
    config = config.override({"training.batch_size": batch})
    found = []
    with pytest.raises(UsageError) as raised:
        found.extend(predict(checkpoint, config, files, tmp_path / "out"))
    head, gone, half = str(raised.value).splitlines()
    assert head == (
        f"2 of 5 images could not be used; the reports of the other 3 are in {tmp_path / 'out'}"
    )
    assert gone.startswith(f"  {files[0]}: no such image file; give a PNG, JPEG")
    assert half.startswith(f"  {files[2]}: image ")
    assert [one["image"] for one in lines_of(tmp_path / "out")] == [files[i] for i in (1, 3, 4)]


def test_lines_are_written_as_they_are_generated(alone, tmp_path):
    checkpoint, config = alone
    films_in(tmp_path / "films", ["a.png", "b.png"])
    predicting = predict(checkpoint, config, [str(tmp_path / "films")], tmp_path / "out")
    next(predicting)
    assert len(lines_of(tmp_path / "out")) == 1
    predicting.close()
    # After an interruption, here in the middle of a line, the same command resumes.
    with (tmp_path / "out" / "predictions.jsonl").open("a") as file:
        file.write('{"image": "half')
    again = list(predict(checkpoint, config, [str(tmp_path / "films")], tmp_path / "out"))
    assert len(again) == len(lines_of(tmp_path / "out")) == 2


def test_lines_and_figures_of_other_images_are_kept(alone, tmp_path):
    checkpoint, config = alone
    for case, seed in (("one", 1), ("other", 2)):
        films_in(tmp_path / case, ["film.png"], seed)
    files = [str(tmp_path / case / "film.png") for case in ("one", "other")]
    out = tmp_path / "out"
    (first,) = predict(checkpoint, config, files[:1], out)
    picture = first.figure.read_bytes()
    (second,) = predict(checkpoint, config, files[1:], out)
    assert [line["image"] for line in lines_of(out)] == files
    assert [line["figure"] for line in lines_of(out)] == [first.figure.name, second.figure.name]
    assert first.figure != second.figure
    assert first.figure.read_bytes() == picture


@pytest.mark.parametrize("left", ["predictions.jsonl", "made_from.json", "film-attention.png"])
def test_predictions_of_something_else_are_not_replaced(alone, film, tmp_path, left):
    checkpoint, config = alone
    out = tmp_path / "out"
    list(predict(checkpoint, config, [str(film[0])], out))
    if left != "made_from.json":
        # By a raymed that left no record.
        for file in out.iterdir():
            if file.name != left:
                file.unlink()
    before = {file: file.read_bytes() for file in out.iterdir()}
    other = config.override({"generation.max_words": 3})
    with pytest.raises(UsageError, match=rf"{left}: .*out=FOLDER, or delete"):
        list(predict(checkpoint, other, [str(film[0])], out))
    assert {file: file.read_bytes() for file in out.iterdir()} == before
