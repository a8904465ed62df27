"""Figures 3 and 4 of runs: the content of the pages, and what is refused."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from raymed.config import Config
from raymed.data.dataset import PreparedDataset, Split
from raymed.data.sources.phantom import draw
from raymed.errors import UsageError
from raymed.figures import make_figure
from raymed.generation import generate
from raymed.launch.run import run_training
from raymed.training.checkpoint import Checkpoint
from tests.support.pages import Page
from tests.support.prepared import prepare_examples

NORMAL = {"no", "normal", "clear", "stable"}


@pytest.fixture(scope="module")
def runs(tiny: Config, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Finished runs of four systems: co_attention's has learned something, the others little."""
    folder = tmp_path_factory.mktemp("figures")
    for system in ("soft_att", "no_attention", "vgg19_tags"):
        values = {"model.system": system, "run.name": system, "run.folder": str(folder)}
        run_training(tiny.override(values | {"training.epochs": 1}), Console(quiet=True))
    return [str(trained), *(str(folder / s) for s in ("soft_att", "no_attention", "vgg19_tags"))]


def data(films: list[object], folder: Path, size: int) -> str:
    prepare_examples(films, folder, source="phantom", image_size=size)
    return str(folder)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield tmp_path


def sentences_of(run: str, picture: np.ndarray) -> list[str]:
    checkpoint = Checkpoint.open(run)
    images = torch.from_numpy(picture)[None]
    written = generate(checkpoint.build_model(), images, checkpoint.config.generation)
    return [checkpoint.vocabulary.decode(ids) for ids in written.sentences[0]]


def assert_png(path: Path) -> None:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300


def abnormal(split: Split) -> list[int]:
    """Images of which at least one sentence has no word of normality, and no tag says normal."""
    return [
        row
        for row, sentences in enumerate(split.sentences)
        if any(not NORMAL & set(sentence.split()) for sentence in sentences)
        and "normal" not in split.tags[row]
    ]


def test_figure_3_shows_the_truth_beside_what_each_system_wrote(
    runs: list[str], cache: Path
) -> None:
    films = [
        film if number % 3 else replace(film, report="No nodule. The lungs are clear.")
        for number, film in enumerate(draw(30, seed=2, image_size=32))
    ]
    prepared = data(films, cache / "prepared", 32)
    split = PreparedDataset.open(prepared).split("train")
    rows = abnormal(split)[:4]
    assert rows != [0, 1, 2, 3], "an image is left out, so the choice is seen"
    files = make_figure("3", runs, prepared, "train", "", cache / "out")
    assert files == [cache / "out" / name for name in ("figure-3.png", "figure-3.html")]
    assert_png(files[0])
    page = Page(files[1])
    page.assert_self_contained()
    assert page.within("h2") == [split.image_ids[row] for row in rows]
    systems = ["co_attention", "soft_att", "no_attention", "vgg19_tags"]
    assert page.within("h3") == ["image", "ground truth", *systems] * 4
    pictures = split.pixels(np.array(rows))
    underlined, plain, empty = ["Underlined"], [], 0
    for row, picture in zip(rows, pictures, strict=True):
        for sentences in (split.sentences[row], *(sentences_of(run, picture) for run in runs)):
            empty += not sentences
            for sentence in filter(None, sentences):
                (plain if NORMAL & set(sentence.split()) else underlined).append(sentence)
    assert page.within("u") == underlined
    assert page.within("li") == plain
    # vgg19_tags writes no sentence.
    assert page.within("p").count("(no sentences)") == empty >= 4
    (note,) = (text for text in page.within("p") if "split of" in text)
    assert "co_attention: run, epoch " in note
    assert "vgg19_tags: vgg19_tags, epoch 1" in note
    assert note.endswith(f"train split of {prepared}")


def test_figure_3_of_named_images_and_several_runs_of_one_system(
    runs: list[str], phantom: Path, tmp_path: Path
) -> None:
    split = PreparedDataset.open(phantom).split("test")
    wanted = split.image_ids[::-1][:2]
    shutil.copytree(runs[1], tmp_path / "soft_att")
    again = [runs[1], str(tmp_path / "soft_att"), runs[1]]
    *_, page = make_figure("3", again, None, "test", ",".join(wanted), tmp_path)
    assert Page(page).within("h2") == wanted
    assert Page(page).within("h3")[2:5] == [
        "soft_att",
        "soft_att (2: soft_att)",
        "soft_att (3: soft_att)",
    ]


def test_figure_4_shows_each_sentence_with_its_attention(
    runs: list[str], phantom: Path, tmp_path: Path
) -> None:
    split = PreparedDataset.open(phantom).split("test")
    row = abnormal(split)[0]
    name = split.image_ids[row]
    *pictures, file = make_figure("4", runs[:1], None, "test", name, tmp_path / "new" / "out")
    assert [path.name for path in pictures] == [f"figure-4-{name}.png"]
    assert_png(pictures[0])
    page = Page(file)
    page.assert_self_contained()
    written = sentences_of(runs[0], split.pixels(np.array([row]))[0])
    assert written
    assert page.within("figcaption") == [sentence for sentence in written if sentence]
    assert page.within("li")[: len(split.sentences[row])] == split.sentences[row]
    labels = [svg["aria-label"] for svg in page.all("svg")]
    assert labels[0] == f"Image {name}"
    assert [str(label).split(":")[0] for label in labels[1:]] == [
        f"Visual attention of sentence {number}" for number in range(1, len(written) + 1)
    ]
    # Predicted tags, at most five, and three attended ones to a sentence, each with its share.
    assert len(page.within("span")) == 2 * (5 + 3 * len(written))


@pytest.mark.parametrize("place", [1, 2, 3])
def test_figure_4_of_systems_that_attend_less_or_write_nothing(
    runs: list[str], phantom: Path, tmp_path: Path, place: int
) -> None:
    split = PreparedDataset.open(phantom).split("test")
    *pictures, file = make_figure("4", [runs[place]], None, "test", "", tmp_path)
    assert len(pictures) == min(4, len(abnormal(split)))
    page = Page(file)
    shown = page.within("h2")
    assert shown == [split.image_ids[row] for row in abnormal(split)[:4]]
    attends = any("Visual attention" in str(svg["aria-label"]) for svg in page.all("svg"))
    assert attends == (place == 1)
    assert ("(no sentences)" in page.within("p")) == (place == 3)


def test_images_of_one_name_in_several_folders_get_a_picture_each(
    runs: list[str], cache: Path
) -> None:
    films = [
        replace(film, image_id=f"case{number}/film.png")
        for number, film in enumerate(draw(20, seed=3, image_size=32))
    ]
    prepared = data(films, cache / "prepared", 32)
    names = PreparedDataset.open(prepared).split("train").image_ids[:2]
    files = make_figure("4", runs[:1], prepared, "train", ",".join(names), cache / "out")
    assert [file.name for file in files] == [
        *(f"figure-4-{name.split('/')[0]}-film.png" for name in names),
        "figure-4.html",
    ]
    assert all(file.is_file() for file in files)


def refused(*arguments: object) -> str:
    with pytest.raises(UsageError) as raised:
        make_figure(*arguments)  # type: ignore[arg-type]
    return str(raised.value)


def test_missing_runs_and_images_are_named(runs: list[str], phantom: Path, tmp_path: Path) -> None:
    first = PreparedDataset.open(phantom).split("test").image_ids[0]
    assert refused("3", runs, None, "test", f"{first},CXR9", tmp_path) == (
        f"images: no image 'CXR9' in split test; its first is {first!r}"
    )
    assert "no split 'tset'; it has train, val, test" in refused(
        "3", runs, None, "tset", "", tmp_path
    )
    gone = str(tmp_path / "gone")
    assert refused("3", [runs[0], gone], None, "test", "", tmp_path).startswith(
        f"{gone}: not a checkpoint"
    )
    assert refused("4", runs[:1], gone, "test", "", tmp_path).startswith(
        f"{gone}: not a prepared dataset"
    )
    assert refused("4", runs[:2], None, "test", "", tmp_path) == "figure 4: takes one run, not 2"
    (tmp_path / "file").touch()
    for figure in ("3", "4"):
        message = refused(figure, runs[:1], None, "test", "", tmp_path / "file" / "out")
        assert "cannot be written" in message
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("figure", ["3", "4"])
def test_a_figure_of_something_else_is_not_replaced(
    runs: list[str], phantom: Path, tmp_path: Path, figure: str
) -> None:
    names = PreparedDataset.open(phantom).split("test").image_ids
    files = make_figure(figure, runs[:1], None, "test", names[0], tmp_path)
    metas = {str(one.get("name")): one.get("content") for one in Page(files[-1]).all("meta")}
    record = json.loads(str(metas["made_from"]))
    assert record["images"] == [names[0]]
    assert record["runs"]["1"]["data"]["split"] == "test"
    before = {file: file.read_bytes() for file in files}
    assert make_figure(figure, runs[:1], None, "test", names[0], tmp_path) == files
    for changed, said in (
        ((runs[1:2], None, "test", names[0]), "runs.1.checkpoint.weights: "),
        ((runs[:1], None, "test", names[1]), "images: "),
    ):
        message = refused(figure, *changed, tmp_path)
        assert message.startswith(f"{files[-1]}: was made from something else (")
        assert said in message
    files[-1].unlink()
    assert "does not say what it was made from" in refused(
        figure, runs[:1], None, "test", names[0], tmp_path
    )
    assert all(file.read_bytes() == before[file] for file in files[:-1])


def test_images_of_another_size_are_refused(runs: list[str], cache: Path) -> None:
    prepared = data(list(draw(20, image_size=40)), cache / "prepared", 40)
    assert refused("3", runs, prepared, "test", "", cache / "out") == (
        f"{runs[0]}: was trained on images of 32 pixels, but those of {prepared} have 40"
    )


def test_if_every_report_is_normal_images_must_be_named(runs: list[str], cache: Path) -> None:
    films = [
        replace(film, report="The lungs are clear. No nodule.", findings=())
        for film in draw(20, image_size=32)
    ]
    prepared = data(films, cache / "prepared", 32)
    first = PreparedDataset.open(prepared).split("test").image_ids[0]
    for figure in ("3", "4"):
        assert refused(figure, runs[:1], prepared, "test", "", cache / "out") == (
            "images: no report of split test describes an abnormality; name the images to show, "
            f"such as images={first}"
        )
    *_, page = make_figure("3", runs[:1], prepared, "test", first, cache / "out")
    assert Page(page).within("h2") == [first]
