"""Figures laid out in inches: films, and text that is wrapped by its measured width.

The origin is the figure's lower left corner. Every figure is drawn at `DPI` in a font that
matplotlib brings along, so what is measured here is what is drawn, on any machine.
"""

import unicodedata
from functools import lru_cache

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D

from raymed.storage import AnyPath, user_output

DPI = 110
FAMILY = "DejaVu Sans"
LEADING = 1.3
"""Distance of two lines' baselines, in font sizes."""

FAINT = "0.4"
"""Grey of what is not the report itself."""

NO_WORDS = "(no words)"
NO_SENTENCES = "(no sentences)"


def canvas(width: float, height: float) -> Figure:
    """An empty white figure of that many inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: AnyPath) -> None:
    """Save as PNG, whole or not at all.

    Raises:
        UsageError: the file cannot be written.
    """
    with user_output(path) as partial:
        figure.savefig(partial, format="png")


def frame(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches; nothing is drawn but what is put into them."""
    wide, tall = figure.get_size_inches()
    place = (left / wide, (top - height) / tall, width / wide, height / tall)
    # A label of their own, as axes at the same place would be the same axes.
    axes = figure.add_axes(place, label=f"{len(figure.axes)}")
    axes.set_axis_off()
    return axes


def film(figure: Figure, image: np.ndarray, left: float, top: float, side: float) -> Axes:
    """Draw an image, uint8 [H, W], as large as fits into a square."""
    axes = frame(figure, left, top, side, side)
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    return axes


def rule(
    figure: Figure, left: float, right: float, level: float, thickness: float, colour: str
) -> None:
    """Draw a horizontal line, `thickness` in points."""
    line = Line2D(
        [left, right],
        [level, level],
        transform=figure.dpi_scale_trans,
        linewidth=thickness,
        color=colour,
    )
    figure.add_artist(line)


def printable(text: str) -> str:
    """The text on one line, with U+FFFD for what is no character to read.

    That is control characters, and the halves of characters that stand for the bytes of a file
    name that is not UTF-8: no font and no encoding takes them.
    """
    return "".join(
        "\ufffd" if unicodedata.category(c) in ("Cc", "Cs") else c for c in " ".join(text.split())
    )


def wrapped(text: str, width: float, size: float, weight: str = "normal") -> list[str]:
    """The lines of a text; only a word that is wider than a line is broken.

    Args:
        text: of any characters; those that the font lacks become U+FFFD.
        width: of a line, inches.
        size: of the font, points.
        weight: of the font, ``normal`` or ``bold``.

    Returns:
        At least one line.
    """
    lines = [""]
    for word in _drawable(text).split():
        line = f"{lines[-1]} {word}".strip()
        if _width(line, size, weight) <= width:
            lines[-1] = line
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and _width(lines[-1] + character, size, weight) > width:
                lines.append("")
            lines[-1] += character
    return lines


def line_height(size: float) -> float:
    """Height of a line in a font of that many points, inches."""
    return size * LEADING / 72


def write(
    figure: Figure,
    lines: list[str],
    left: float,
    top: float,
    size: float,
    weight: str = "normal",
    style: str = "normal",
    colour: str = "black",
    underlined: bool = False,
) -> float:
    """Set lines of text below each other.

    Args:
        figure: made by `canvas`.
        lines: as `wrapped` gives them for the same size and weight.
        left: of the lines, inches.
        top: of the first line, inches.
        size: of the font, points.
        weight: of the font, ``normal`` or ``bold``.
        style: of the font, ``normal`` or ``italic``.
        colour: of the text and of the line under it.
        underlined: draw a line under the text.

    Returns:
        The lower edge of the last line, inches.
    """
    for line in lines:
        top -= line_height(size)
        baseline = top + 0.3 * size / 72
        figure.text(
            left,
            baseline,
            line,
            transform=figure.dpi_scale_trans,
            family=FAMILY,
            fontsize=size,
            weight=weight,
            style=style,
            color=colour,
            parse_math=False,  # names and tags as they are: no formula is meant by a dollar sign
        )
        if underlined:
            end = left + _width(line, size, weight)
            level = baseline - 0.14 * size / 72
            rule(figure, left, end, level, 0.08 * size, colour)
    return top


def _drawable(text: str) -> str:
    font = get_font(findfont(FAMILY))
    return "".join(c if font.get_char_index(ord(c)) else "\ufffd" for c in printable(text))


@lru_cache(maxsize=1)
def _ruler() -> RendererAgg:
    return RendererAgg(1, 1, DPI)


@lru_cache(maxsize=100_000)
def _width(text: str, size: float, weight: str) -> float:
    font = FontProperties(family=FAMILY, size=size, weight=weight)
    return _ruler().get_text_width_height_descent(text, font, ismath=False)[0] / DPI
