"""The attention figure, seen through what was drawn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from raymed.reports.attention import COLUMNS, STRONGEST_TAGS, AttendedSentence, attention_figure

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 30)).astype(np.uint8)
TAGS = [("nodule", 0.5), ("$5 _{", 0.3), ("[/bold]", 0.1), ("c", 0.06), ("d", 0.03), ("e", 0.01)]


def sentences(count: int) -> list[AttendedSentence]:
    random = np.random.default_rng(1)
    return [
        AttendedSentence(
            text=f"sentence of number {i}" if i else "",
            alpha=random.dirichlet(np.ones(6)).reshape(2, 3),
            tags=[("low", 0.05), ("high", 0.6), ("middle", 0.25), ("next", 0.1)],
        )
        for i in range(count)
    ]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    figures: list[Figure] = []
    real = Figure.savefig

    def save(self: Figure, *arguments: Any, **others: Any) -> None:
        figures.append(self)
        real(self, *arguments, **others)

    monkeypatch.setattr(Figure, "savefig", save)
    return figures


@pytest.mark.parametrize("count", [0, 1, 3, 9])
def test_a_panel_for_the_image_and_for_each_sentence(
    tmp_path: Path, drawn: list[Figure], count: int
) -> None:
    path = tmp_path / "new" / "figure.png"
    given = sentences(count)
    attention_figure(path, IMAGE, given, TAGS, "film")
    (figure,) = drawn
    first, *others = figure.axes
    assert len(others) == count
    assert len(first.images) == 1
    assert np.array_equal(first.images[0].get_array(), IMAGE)
    for axis, sentence in zip(others, given, strict=True):
        image, attention = axis.images
        assert np.array_equal(image.get_array(), IMAGE)
        assert np.array_equal(attention.get_array(), sentence.alpha)
        # The coarse map covers the image exactly, and the strongest region is the brightest.
        assert list(attention.get_extent()) == [-0.5, 29.5, 39.5, -0.5]
        assert attention.get_clim() == (0, sentence.alpha.max())
    columns = min(COLUMNS, count + 1)
    assert len({round(axis.get_position().x0, 3) for axis in figure.axes}) == columns
    with Image.open(path) as saved:
        assert saved.format == "PNG"
        assert saved.width == pytest.approx(352 * columns, abs=2)
        assert saved.height > 352


def test_texts_of_a_panel(tmp_path: Path, drawn: list[Figure]) -> None:
    attention_figure(tmp_path / "f.png", IMAGE, sentences(2), TAGS, "a$b_{$.png", "truth $x$. two")
    (figure,) = drawn
    tags, empty, written = (axis.texts[0].get_text().splitlines() for axis in figure.axes)
    assert tags == ["nodule 0.50", "$5 _{ 0.30", "[/bold] 0.10", "c 0.06", "d 0.03"]
    assert empty == ["(no words)", "high 0.60", "middle 0.25", "next 0.10"]
    assert written[0] == "sentence of number 1"
    assert len(written) == 1 + STRONGEST_TAGS
    assert figure.get_suptitle() == "a$b_{$.png"
    assert [text.get_text() for text in figure.texts if text.get_text() != "a$b_{$.png"] == [
        "ground truth: truth $x$. two"
    ]


def test_what_is_written_stays_on_the_page_and_apart(tmp_path: Path, drawn: list[Figure]) -> None:
    words = " ".join(["cardiomediastinal silhouette"] * 6)
    long = [
        AttendedSentence(words, one.alpha, [("costophrenic angle blunted", 0.2)] * 3)
        for one in sentences(6)
    ]
    attention_figure(tmp_path / "f.png", IMAGE, long, TAGS, "film", f"{words}. {words}")
    (figure,) = drawn
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    page = figure.bbox
    texts = [*figure.texts, *(axis.texts[0] for axis in figure.axes)]
    boxes = [text.get_window_extent(renderer) for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        assert page.x0 <= box.x0 < box.x1 <= page.x1, text
        assert page.y0 <= box.y0 < box.y1 <= page.y1, text
    pictures = [axis.get_window_extent(renderer) for axis in figure.axes]
    for axis, box in zip(figure.axes, boxes[-len(figure.axes) :], strict=True):
        covered = [other for other in pictures if other.overlaps(box)]
        assert not covered, axis.get_title()
