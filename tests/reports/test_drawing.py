"""Text is measured, wrapped and underlined."""

from itertools import pairwise

import pytest

from raymed.reports.drawing import DPI, LEADING, canvas, printable, wrapped, write
from tests.support.drawn_figures import boxes, underlined


def test_unprintable_characters_are_replaced() -> None:
    name = b"film\xff\x1b[1m\n a\t\xc3\xa9.png".decode(errors="surrogateescape")
    assert printable(name) == "film\ufffd\ufffd[1m a é.png"
    assert printable("胸部 <b> $x$") == "胸部 <b> $x$"
    # The figures' font has no such characters.
    assert wrapped("胸部 film é", 9, 8) == ["\ufffd\ufffd film é"]


@pytest.mark.parametrize("weight", ["normal", "bold"])
@pytest.mark.parametrize("size", [8, 12])
def test_lines_are_filled(size: float, weight: str) -> None:
    text = "i ill will illicit wm mw wwwwmmmmwwww " * 3 + "W" * 50 + " the heart is normal"
    figure = canvas(2, 20)
    lines = wrapped(text, 1.5, size, weight)
    write(figure, lines, 0, 20, size, weight=weight)
    widths = [box.width for _, box in boxes(figure)]
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert max(widths) <= 1.5 * DPI
    # Each next word would have been too much: for the line, or, of a broken word, a letter.
    for line, following in pairwise(lines):
        broken = set(line) == {"W"} and set(following.split()[0]) == {"W"}
        more = line + (following[0] if broken else f" {following.split()[0]}")
        write(figure, [more], 0, 20, size, weight=weight)
        assert boxes(figure)[-1][1].width > 1.5 * DPI, (line, following)


def test_no_text_is_one_empty_line() -> None:
    assert wrapped("", 1, 8) == [""]


def test_lines_stand_below_each_other_from_the_given_top() -> None:
    figure = canvas(3, 2)
    edge = write(figure, ["(Égjy)", "(Égjy)"], 0.5, 1.5, 10, underlined=True)
    assert edge == pytest.approx(1.5 - 2 * 10 * LEADING / 72)
    (_, first), (_, second) = boxes(figure)
    assert first.x0 == pytest.approx(0.5 * DPI, abs=1.5)
    assert edge * DPI <= second.y0 < second.y1 <= first.y0 < first.y1 <= 1.5 * DPI + 1
    assert underlined(figure) == ["(Égjy)", "(Égjy)"]
