"""Texts and pictures of a drawn figure, and their positions."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox


def boxes(figure: Figure) -> list[tuple[Text, Bbox]]:
    """Each line of text with its bounding box in pixels."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    return [(text, text.get_window_extent(renderer)) for text in figure.texts]


def below(figure: Figure, heading: str) -> list[str]:
    """The lines of text from a heading downwards, at its left edge."""
    texts = [(text.get_text(), *text.get_position()) for text in figure.texts]
    ((_, left, top),) = [one for one in texts if one[0] == heading]
    column = [(-y, text) for text, x, y in texts if x == left and y < top]
    return [text for _, text in sorted(column)]


def underlined(figure: Figure) -> list[str]:
    """The texts with a line under them that is as long as they are."""
    found = []
    for line in figure.artists:
        assert isinstance(line, Line2D)
        (x0, y), (x1, _) = line.get_transform().transform(line.get_xydata())
        for text, box in boxes(figure):
            # Under the letters' feet, and above the lowest point of a g.
            if abs(box.x0 - x0) < 2 and abs(box.x1 - x1) < 2 and box.y0 - 1 <= y < box.y0 + 4:
                found.append(text.get_text())
    return found


def assert_apart(figure: Figure) -> None:
    """All texts and pictures lie inside the figure, and no two overlap."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    placed = [(text.get_text(), box) for text, box in boxes(figure)]
    placed += [("a picture", axes.get_window_extent(renderer)) for axes in figure.axes]
    names = [name for name, _ in placed]
    corners = np.array([box.extents for _, box in placed])
    x0, y0, x1, y1 = corners.T
    inside = (x0 >= 0) & (y0 >= 0) & (x1 <= figure.bbox.width) & (y1 <= figure.bbox.height)
    assert inside.all(), [name for name, fits in zip(names, inside, strict=True) if not fits]
    apart = [
        (x1[:, None] <= x0) | (x0[:, None] >= x1) | (y1[:, None] <= y0) | (y0[:, None] >= y1),
        np.eye(len(names), dtype=bool),
    ]
    meeting = np.argwhere(~np.logical_or.reduce(apart))
    assert not len(meeting), [(names[one], names[other]) for one, other in meeting]
