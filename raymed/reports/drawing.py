"""PNG figures laid out in inches: films, and text wrapped by its measured width.

The origin is the figure's lower left corner. Every figure is drawn at `DPI` in a font that
ships with matplotlib, so what is measured here is what is drawn, on any machine.
"""

import unicodedata
from functools import lru_cache
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from PIL import Image

from raymed.notices import NOT_FOR_CLINICAL_USE
from raymed.storage import AnyPath, user_output

DPI = 110
FAMILY = "DejaVu Sans"
LEADING = 1.3
"""Distance of two lines' baselines, in font sizes."""

FAINT = "0.4"
"""The grey of everything but the report itself."""
GAP = 0.25
"""Inches between neighbouring columns, and between rows."""
MARGIN = 0.2
"""Inches around the figure."""
FOOTER = 7
"""Points: the size of the last line of a figure."""

NO_WORDS = "(no words)"
NO_SENTENCES = "(no sentences)"


def canvas(width: float, height: float) -> Figure:
    """An empty white figure, its size in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: AnyPath) -> None:
    """Save as PNG, atomically.

    Raises:
        UsageError: The file cannot be written.
    """
    with user_output(path) as partial:
        figure.savefig(partial, format="png")


def as_picture(figure: Figure) -> Image.Image:
    """The figure as `save` writes it, in memory."""
    content = BytesIO()
    figure.savefig(content, format="png")
    return Image.open(content)


def frame(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a position in inches, without ticks or a frame."""
    wide, tall = figure.get_size_inches()
    bounds = (left / wide, (top - height) / tall, width / wide, height / tall)
    # Matplotlib would return existing axes of the same bounds and label.
    axes = figure.add_axes(bounds, label=f"{len(figure.axes)}")
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
    """The text on one line, with U+FFFD for each unprintable character.

    These are control characters, and the surrogates that stand for the bytes of a file name that
    is not UTF-8: no font and no encoding has them.
    """
    return "".join(
        "\ufffd" if unicodedata.category(c) in ("Cc", "Cs") else c for c in " ".join(text.split())
    )


def wrapped(text: str, width: float, size: float, weight: str = "normal") -> list[str]:
    """Wrap a text into lines; only a word that is wider than a line is broken.

    Args:
        text: Any text; characters that the font lacks become U+FFFD.
        width: Width of a line, inches.
        size: Font size, points.
        weight: Font weight, ``normal`` or ``bold``.

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


def footer(width: float) -> list[str]:
    """The lines that end every figure of that width, to be written in size `FOOTER`."""
    return wrapped(NOT_FOR_CLINICAL_USE, width - 2 * MARGIN, FOOTER)


def line_height(size: float) -> float:
    """Height of a line, inches, in a font of that many points."""
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
    """Write lines of text below each other.

    Args:
        figure: A figure made by `canvas`.
        lines: The lines, wrapped by `wrapped` for the same size and weight.
        left: Left edge of the lines, inches.
        top: Upper edge of the first line, inches.
        size: Font size, points.
        weight: Font weight, ``normal`` or ``bold``.
        style: Font style, ``normal`` or ``italic``.
        colour: Colour of the text and of the line under it.
        underlined: Whether to draw a line under the text.

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
            parse_math=False,  # a dollar sign in a name or tag starts no formula
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
