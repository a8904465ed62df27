"""Figure 4: the attention of each sentence, read back from the figure and the page."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from raymed.errors import UsageError
from raymed.notices import NOT_FOR_CLINICAL_USE
from raymed.reports.attended import AttendedSentence, AttendedStudy
from raymed.reports.attention import COLUMNS, attention_figure, attention_page
from raymed.reports.overlay import OPACITY
from tests.support.drawn_figures import assert_apart, below
from tests.support.pages import Page

IMAGE = np.random.default_rng(0).integers(0, 256, (1, 40, 30)).astype(np.uint8)
TAGS = [("nodule", 0.5), ("$5 _{", 0.3), ("[/bold]", 0.1), ("c", 0.06), ("d", 0.03), ("e", 0.01)]
BETA = [("low", 0.05), ("high", 0.6), ("middle", 0.25), ("next", 0.1)]
ALPHA = np.array([[[0.1, 0.1, 0.1], [0.1, 0.1, 0.5]]])


def sentences(count: int) -> list[AttendedSentence]:
    random = np.random.default_rng(1)
    alphas = random.dirichlet(np.ones(6), count).reshape(count, 1, 2, 3)
    return [
        AttendedSentence(f"sentence of number {number}" if number else "", alpha, BETA)
        for number, alpha in enumerate(alphas)
    ]


@pytest.mark.parametrize("count", [1, 3, 12])
def test_a_panel_for_the_image_and_for_each_sentence(
    tmp_path: Path, drawn: list[Figure], count: int
) -> None:
    path = tmp_path / "new" / "figure.png"
    given = sentences(count)
    attention_figure(path, IMAGE, given, TAGS, "film")
    (figure,) = drawn
    first, *others, legend = figure.axes
    assert len(others) == count
    assert len(first.images) == 1
    assert np.array_equal(first.images[0].get_array(), IMAGE[0])
    for axes, sentence in zip(others, given, strict=True):
        image, attention = axes.images
        assert np.array_equal(image.get_array(), IMAGE[0])
        assert np.array_equal(attention.get_array(), sentence.alpha[0])
        # The coarse map covers the image exactly, and the strongest region is the brightest.
        assert list(attention.get_extent()) == [-0.5, 29.5, 39.5, -0.5]
        assert attention.get_clim() == (0, sentence.alpha.max())
    ramp = legend.images[0].get_array()
    expected = OPACITY * colormaps["inferno"](1.0)[0] + (1 - OPACITY) / 2
    assert ramp[0, -1, 0] / 255 == pytest.approx(expected, abs=0.01)
    assert len({round(axes.get_position().x0, 3) for axes in [first, *others]}) == min(
        COLUMNS, count + 1
    )
    with Image.open(path) as saved:
        assert saved.format == "PNG"
        assert saved.size == (int(figure.bbox.width), int(figure.bbox.height))


def test_texts_of_a_panel(tmp_path: Path, drawn: list[Figure]) -> None:
    given = [*sentences(1), AttendedSentence("the heart", ALPHA, BETA)]
    attention_figure(tmp_path / "f.png", IMAGE, given, TAGS, "a$b_{$.png", "truth $x$. two")
    (figure,) = drawn
    tags = ["nodule 0.50", "$5 _{ 0.30", "[/bold] 0.10", "c 0.06", "d 0.03"]
    legend, truth = "visual attention: 0", "ground truth: truth $x$. two"
    shown = [" ".join(text.split()) for text in below(figure, "predicted tags")]
    assert shown == [*tags, legend, truth, NOT_FOR_CLINICAL_USE]
    strongest = ["high 0.60", "middle 0.25", "next 0.10"]
    assert below(figure, "sentence 1")[0] == "(no words)"
    assert below(figure, "sentence 1")[2:] == strongest
    # Half of the attention is on one of six regions: three times an even share.
    assert below(figure, "sentence 2") == [
        "the heart",
        "strongest region 0.500 (3.0 x even)",
        *strongest,
    ]
    assert below(figure, "a$b_{$.png")[0] == "predicted tags"


def test_systems_without_visual_or_semantic_attention(tmp_path: Path, drawn: list[Figure]) -> None:
    attention_figure(tmp_path / "f.png", IMAGE, [AttendedSentence("a", None, BETA)], TAGS, "film")
    attention_figure(tmp_path / "f.png", IMAGE, [AttendedSentence("b", ALPHA, [])], [], "film")
    attention_figure(tmp_path / "f.png", IMAGE, [], TAGS, "film")
    semantic, visual, empty = drawn
    assert len(semantic.axes) == 1, "the film alone, and no legend"
    assert below(semantic, "sentence 1") == ["a", "high 0.60", "middle 0.25", "next 0.10"]
    assert len(visual.axes) == 3
    assert below(visual, "sentence 1") == ["b", "strongest region 0.500 (3.0 x even)"]
    assert below(visual, "image")[0].startswith("visual attention")
    assert below(empty, "report") == ["(no sentences)"]


def test_texts_stay_on_the_figure_and_do_not_overlap(tmp_path: Path, drawn: list[Figure]) -> None:
    words = " ".join(["cardiomediastinal silhouette"] * 6) + "w" * 80
    long = [
        AttendedSentence(words, one.alpha, [("costophrenic angle blunted " * 3, 0.2)] * 3)
        for one in sentences(12)
    ]
    attention_figure(
        tmp_path / "f.png", IMAGE, long, TAGS, "film \udcff" + "n" * 300, f"{words}. {words}"
    )
    attention_figure(tmp_path / "f.png", IMAGE, long[:1], TAGS, "n" * 300, words)
    attention_figure(tmp_path / "f.png", IMAGE, [], TAGS, "n" * 300, words)
    for figure in drawn:
        assert_apart(figure)


def two_images() -> tuple[np.ndarray, list[AttendedSentence]]:
    """A study of two images, with three times as much attention on the second."""
    other = np.random.default_rng(3).integers(0, 256, IMAGE.shape).astype(np.uint8)
    alpha = np.concatenate([0.25 * ALPHA, 0.75 * ALPHA[:, ::-1]])
    return np.concatenate([IMAGE, other]), [AttendedSentence("the heart", alpha, BETA)]


def test_each_image_of_a_study_has_its_map_on_one_scale(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    images, given = two_images()
    attention_figure(tmp_path / "f.png", images, given, TAGS, "a.png,b.png")
    (figure,) = drawn
    *films, _ = figure.axes
    assert len(films) == 4, "two without attention, two with it"
    assert_apart(figure)
    alpha = given[0].alpha
    assert alpha is not None
    for number, (plain, attended) in enumerate(zip(films[:2], films[2:], strict=True)):
        assert np.array_equal(plain.images[0].get_array(), images[number])
        image, attention = attended.images
        assert np.array_equal(image.get_array(), images[number])
        assert np.array_equal(attention.get_array(), alpha[number])
        assert attention.get_clim() == (0, 0.375)

    attention_page(tmp_path / "f.html", [AttendedStudy("a,b", images, given, TAGS, None)], "note")
    page = Page(tmp_path / "f.html")
    named = [image["aria-label"] for image in page.all("svg")]
    place = "strongest in image 2 of 2, row 1 of 2, column 3 of 3"
    assert named == [
        "Image 1 of a,b",
        "Image 2 of a,b",
        f"Visual attention of sentence 1 in image 1: {place}",
        f"Visual attention of sentence 1 in image 2: {place}",
    ]
    ids = [image["id"] for image in page.all("image") if "id" in image]
    assert [use["href"] for use in page.all("use")] == [f"#{name}" for name in ids]


def studies() -> list[AttendedStudy]:
    """One of each kind: all attention and odd texts, none and no truth, an empty report."""
    odd = AttendedSentence("<script>alert(1)</script> & \"a\" 'b'", ALPHA, BETA)
    return [
        AttendedStudy('a <b> "c" \udcff', IMAGE, [odd, *sentences(1)], TAGS, ["x < y", "& z"]),
        AttendedStudy("lstm", IMAGE, [AttendedSentence("words", None, [])], [], None),
        AttendedStudy("empty", IMAGE, [], TAGS, []),
    ]


def test_a_page_is_complete_and_self_contained(tmp_path: Path) -> None:
    path = tmp_path / "new" / "f.html"
    attention_page(path, studies(), "runs/7 <b>, best checkpoint")
    page = Page(path)
    page.assert_self_contained()
    assert page.within("h2") == ['a <b> "c" \ufffd', "lstm", "empty"]
    assert page.within("figcaption") == ["<script>alert(1)</script> & \"a\" 'b'", "words"]
    assert "runs/7 <b>, best checkpoint" in page.within("p")
    assert page.within("footer") == [NOT_FOR_CLINICAL_USE]
    assert page.within("p").count("(no sentences)") == 2, "of the empty truth and report"
    assert page.within("h3").count("ground truth") == 2, "none where it is not known"
    assert [text for text in page.within("li") if text] == ["x < y", "& z"]
    predicted = ["nodule", "0.50", "$5 _{", "0.30", "[/bold]", "0.10", "c", "0.06", "d", "0.03"]
    strongest = ["high", "0.60", "middle", "0.25", "next", "0.10"]
    assert page.within("span") == [
        *predicted,
        *strongest,
        "(no words)",
        *strongest,
        *predicted,
    ]
    named = [image["aria-label"] for image in page.all("svg")]
    assert named[0] == 'Image a <b> "c" \ufffd'
    assert named[1] == "Visual attention of sentence 1: strongest in row 2 of 2, column 3 of 3"
    assert len(named) == 3 + 2
    ids = [image["id"] for image in page.all("image") if "id" in image]
    assert len(set(ids)) == 3, "each film is in the page once"
    assert [use["href"] for use in page.all("use")] == [f"#{ids[0]}"] * 2
    assert len(path.read_bytes()) < 20_000


def test_a_page_without_visual_attention_has_no_legend(tmp_path: Path) -> None:
    for name, given in (("with", studies()), ("without", studies()[1:])):
        attention_page(tmp_path / name, given, "note")
    assert [image["alt"] for image in Page(tmp_path / "with").all("img")] == [
        "colours from dark over red to yellow"
    ]
    assert not Page(tmp_path / "without").all("img")


def test_the_picture_of_attention_is_what_matplotlib_draws(tmp_path: Path) -> None:
    attention_page(tmp_path / "f.html", studies(), "note")
    picture = Page(tmp_path / "f.html").all("image")[1]
    data = (picture["href"] or "").removeprefix("data:image/png;base64,")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)
    # Between the regions' centres the attention goes over from one to the next, beyond them it
    # stays.
    rows, columns = pixels.shape[:2]
    at = [(np.arange(n) + 0.5) / n * regions - 0.5 for n, regions in ((rows, 2), (columns, 3))]
    across = np.array([np.interp(at[1], range(3), row) for row in ALPHA[0]])
    smooth = np.array([np.interp(at[0], range(2), column) for column in across.T]).T
    expected = 255 * colormaps["inferno"](smooth / ALPHA.max())[..., :3]
    assert np.abs(pixels - expected).max() < 6  # of 64 steps


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        attention_page(tmp_path / "file" / "f.html", studies(), "note")
    with pytest.raises(UsageError, match="cannot be written"):
        attention_figure(tmp_path / "file" / "f.png", IMAGE, sentences(1), TAGS, "film")


@pytest.mark.browser
def test_in_a_browser(tmp_path: Path, evaluate: Callable[..., Any]) -> None:
    path = tmp_path / "f.html"
    grey = np.full_like(IMAGE, 128)
    (first, *others) = studies()
    attention_page(
        path, [AttendedStudy("n" * 300, grey, first.sentences, TAGS, None), *others], "note"
    )
    decoded = (
        "Promise.all([...document.querySelectorAll('image, img')]"
        ".map(one => one.decode().then(() => 1, () => 0)))"
    )
    asked = "performance.getEntriesByType('resource').map(entry => entry.name)"
    boxes = (
        "[...document.querySelectorAll('svg')].map(svg => svg.getBoundingClientRect())"
        ".map(box => [box.left, box.top, box.right, box.bottom])"
    )
    wide = "[document.documentElement.scrollWidth, innerWidth]"
    narrow = evaluate(path, f"{decoded}.then(all => [all, {asked}, {wide}])", "--window-size=360,9")
    assert narrow[:2] == [[1] * 6, []], "legend, three films, two pictures of attention; no request"
    assert narrow[2][0] <= narrow[2][1], "nothing to scroll sideways on a narrow screen"

    shot = tmp_path / "shot.png"
    options = ("--window-size=1000,1500", "--hide-scrollbars", f"--screenshot={shot}")
    films = evaluate(path, boxes, *options)
    with Image.open(shot) as picture:
        seen = np.asarray(picture.convert("RGB")).astype(float)
    left, top, right, bottom = films[1]
    for row, column in np.ndindex(ALPHA[0].shape):
        x = left + (right - left) * (column + 0.5) / 3
        y = top + (bottom - top) * (row + 0.5) / 2
        # The pixels nearest to a region's centre are a sixteenth of the way to the next region.
        near = ALPHA[0, row, column] / ALPHA.max() + np.linspace(-0.1, 0.1, 21)
        expected = OPACITY * 255 * colormaps["inferno"](near)[:, :3] + (1 - OPACITY) * 128
        assert np.abs(seen[int(y), int(x)] - expected).max(axis=1).min() < 6, (row, column)
