"""Figure 3: the ground truth beside the systems' reports, abnormal sentences underlined."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from raymed.errors import UsageError
from raymed.notices import NOT_FOR_CLINICAL_USE
from raymed.reports.comparison import ComparedStudy, comparison_figure, comparison_page
from tests.support.drawn_figures import assert_apart, below, underlined
from tests.support.pages import Page

IMAGE = np.random.default_rng(0).integers(0, 256, (1, 40, 40)).astype(np.uint8)
SYSTEMS = ("cnn_rnn", "lrcn", "soft_att", "att_rk", "none", "semantic", "visual", "co", "a <b> & c")
SENTENCES = (
    "the heart is enlarged",
    "no pleural effusion",
    "",
    "lungs are clear",
    "unstable <script>alert(1)</script> & \"abnormal\" 'nodules' $x_1$",
    "cardiomediastinal silhouette " * 6 + "w" * 80,
)
RULE = re.compile(r"\b(no|normal|clear|stable)\b")


def study(systems: int, sentences: int, name: str = "film") -> ComparedStudy:
    """A study whose systems write that many sentences, each from another one on."""
    reports = {
        system: [SENTENCES[(start + number) % len(SENTENCES)] for number in range(sentences)]
        for start, system in enumerate(SYSTEMS[:systems])
    }
    return ComparedStudy(name, IMAGE, ["stable nodule", "bones are intact"], reports)


@pytest.mark.parametrize("systems", [2, 9])
@pytest.mark.parametrize("sentences", [0, 1, 12])
def test_nothing_overlaps(
    tmp_path: Path, drawn: list[Figure], systems: int, sentences: int
) -> None:
    studies = [study(systems, sentences), study(systems, 3, "a$b_{$ \udcff " + "n" * 200)]
    comparison_figure(tmp_path / "new" / "f.png", studies, "runs/7, seed 0")
    (figure,) = drawn
    assert_apart(figure)
    for axes in figure.axes:
        assert np.array_equal(axes.images[0].get_array(), IMAGE[0])
    with Image.open(tmp_path / "new" / "f.png") as saved:
        assert saved.format == "PNG"
        assert saved.size == (int(figure.bbox.width), int(figure.bbox.height))


def test_each_report_stands_below_its_system_and_beside_its_image(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    first = ComparedStudy("one", IMAGE, ["a b", "no c"], {"x": ["d e", "stable f"], "y": []})
    second = ComparedStudy("two", IMAGE, ["g"], {"x": ["", "h"], "y": ["clear i"]})
    comparison_figure(tmp_path / "f.png", [first, second], "the note")
    (figure,) = drawn
    assert below(figure, "ground truth") == ["a b", "no c", "g"]
    assert below(figure, "x") == ["d e", "stable f", "(no words)", "h"]
    assert below(figure, "y") == ["(no sentences)", "clear i"]
    *names, rule, note, notice = below(figure, "image")
    assert names == ["one", "two"]
    assert "none of the words clear, no, normal, stable" in rule
    assert (note, notice) == ("the note", NOT_FOR_CLINICAL_USE)
    places = {text.get_text(): text.get_position()[1] for text in figure.texts}
    assert places["a b"] == places["d e"] == places["(no sentences)"]
    assert places["g"] == places["(no words)"] == places["clear i"] < places["one"]


def test_abnormal_sentences_are_underlined_line_by_line(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    comparison_figure(tmp_path / "f.png", [study(2, 6)], "note")
    (figure,) = drawn
    found = " ".join(underlined(figure))
    abnormal = [text for text in SENTENCES if text and not RULE.search(text)]
    assert len(abnormal) == 3
    for sentence in abnormal:
        assert found.replace(" ", "").count(sentence.replace(" ", "")) == 2
    assert not RULE.search(found)
    assert found.count("bones are intact") == 1
    assert "(no" not in found


def test_the_page_underlines_the_same_and_is_self_contained(tmp_path: Path) -> None:
    comparison_page(tmp_path / "f.html", [study(9, 6, 'a "b" <i>'), study(9, 0)], "runs/7 <b>")
    page = Page(tmp_path / "f.html")
    page.assert_self_contained()
    spaced = [" ".join(text.split()) for text in SENTENCES]
    abnormal = [text for text in spaced if text and not RULE.search(text)]
    word, *marked = page.within("u")
    assert word == "Underlined"
    assert sorted(marked) == sorted(abnormal * 9 + ["bones are intact"] * 2)
    normal = [text for text in spaced if RULE.search(text)]
    assert sorted(page.within("li")) == sorted(normal * 9 + ["stable nodule"] * 2)
    assert page.within("span") == ["(no words)"] * 9
    assert page.within("h3") == ["image", "ground truth", *SYSTEMS] * 2
    assert page.within("h2") == ['a "b" <i>', "film"]
    assert page.within("p").count("(no sentences)") == 9
    assert "runs/7 <b>" in page.within("p")
    assert page.within("footer") == [NOT_FOR_CLINICAL_USE]
    assert [image["alt"] for image in page.all("img")] == ['Image a "b" <i>', "Image film"]


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for write in (comparison_page, comparison_figure):
        with pytest.raises(UsageError, match="cannot be written"):
            write(tmp_path / "file" / "f", [study(2, 1)], "note")


@pytest.mark.browser
def test_in_a_browser(tmp_path: Path, evaluate: Callable[..., Any]) -> None:
    path = tmp_path / "f.html"
    comparison_page(path, [study(9, 12, "n" * 300), study(9, 1)], "note")
    sizes = "[...document.images].map(image => image.naturalWidth)"
    asked = "performance.getEntriesByType('resource').map(entry => entry.name)"
    wide = "[document.documentElement.scrollWidth, innerWidth]"
    found = evaluate(path, f"[{sizes}, {asked}, {wide}]", "--window-size=360,800")
    assert found[:2] == [[40, 40], []]
    scrolled, window = found[2]
    assert scrolled <= window, "nothing to scroll sideways on a narrow screen"
    # The same question does find what another page would ask for.
    path.write_text(path.read_text().replace("</main>", '<img src="http://127.0.0.1:9/"></main>'))
    assert evaluate(path, asked) == ["http://127.0.0.1:9/"]
