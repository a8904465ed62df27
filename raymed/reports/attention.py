"""Figure 4: the regions and tags that the model attended to, sentence by sentence.

After figure 4 of Jing et al. (2018): for each sentence the visual attention over the image, the
three tags of highest semantic attention, and the sentence; beside them the ground truth.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from raymed.reports.attended import AttendedSentence, AttendedStudy
from raymed.reports.drawing import (
    FAINT,
    FOOTER,
    GAP,
    MARGIN,
    NO_SENTENCES,
    NO_WORDS,
    canvas,
    film,
    footer,
    frame,
    line_height,
    save,
    wrapped,
    write,
)
from raymed.reports.overlay import COLOURS, OPACITY, colours, legend, smooth
from raymed.reports.page import data_uri, write_page
from raymed.storage import AnyPath

COLUMNS = 4
STRONGEST_TAGS = 3
PREDICTED_TAGS = 5

STEPS = 64
"""Colours of a page's picture of attention; the steps between them cannot be seen."""
SMOOTHING = 8
"""Pixels to a region of that picture."""
_RAMP = np.arange(STEPS, dtype=np.uint8)[None].repeat(4, axis=0)

PANEL = 2.9  # inches: a picture's side and the width of the text below it
SPACE = 0.04
TITLE, HEADING, TRUTH, TEXT = 12, 10, 9, 8  # points


def attention_page(
    path: AnyPath, studies: Sequence[AttendedStudy], note: str, made_from: str = ""
) -> None:
    """Write one self-contained HTML page with all studies.

    A study's films are in the page once, and each sentence's attention is a small picture that the
    browser lays over it: some 2 KB a sentence, where a film blended with its attention takes 100.

    Args:
        path: The HTML file.
        studies: The studies, in the order in which they are shown.
        note: The run, checkpoint and split that the page was made from.
        made_from: The same as JSON, which the page contains but does not show.

    Raises:
        UsageError: The file cannot be written.
    """
    values = attention_values(studies)
    write_page(path, "attention.html", note=note, made_from=made_from, **values)


def attention_values(studies: Sequence[AttendedStudy]) -> dict[str, object]:
    """The values that the template ``attention.html``, or one that extends it, needs."""
    return {
        "studies": [_shown(study) for study in studies],
        "scale": data_uri(_RAMP, legend(STEPS)) if _attends(_sentences(studies)) else None,
        "opacity": OPACITY,
    }


def attention_figure(
    path: AnyPath,
    images: np.ndarray,
    sentences: Sequence[AttendedSentence],
    tags: Sequence[tuple[str, float]],
    title: str,
    truth: str | None = None,
) -> None:
    """Draw one study's figure and save it as PNG; the arguments are those of `draw_attention`.

    Raises:
        UsageError: The file cannot be written.
    """
    save(draw_attention(images, sentences, tags, title, truth), path)


def draw_attention(
    images: np.ndarray,
    sentences: Sequence[AttendedSentence],
    tags: Sequence[tuple[str, float]],
    title: str,
    truth: str | None = None,
) -> Figure:
    """Draw one study's figure.

    Args:
        images: The images as the model saw them, uint8 [I, H, W].
        sentences: The report's sentences, in order.
        tags: Predicted tags with their probabilities, the likeliest first.
        title: The figure's title, such as the images' names.
        truth: The report written by a person, if it is known.
    """
    panels = _panels(len(images), sentences, tags)
    columns = min(COLUMNS, len(panels))
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    heights = [max(panel.height for panel in row) + GAP for row in rows]
    width = columns * (PANEL + GAP) - GAP + 2 * MARGIN
    heading = wrapped(title, width - 2 * MARGIN, TITLE)
    known = wrapped(f"ground truth: {truth}", width - 2 * MARGIN, TRUTH) if truth else []
    scale = 2 * line_height(TEXT) if _attends(sentences) else 0
    foot = footer(width)
    head = len(heading) * line_height(TITLE) + 0.1
    below = scale + len(known) * line_height(TRUTH) + len(foot) * line_height(FOOTER)
    tall = 2 * MARGIN + head + sum(heights) + below
    figure = canvas(width, tall)

    write(figure, heading, MARGIN, tall - MARGIN, TITLE)
    top = tall - MARGIN - head
    for row, height in zip(rows, heights, strict=True):
        for column, panel in enumerate(row):
            _draw(figure, panel, images, MARGIN + column * (PANEL + GAP), top)
        top -= height
    if scale:
        _scale(figure, MARGIN, top)
    top = write(figure, known, MARGIN, top - scale, TRUTH, style="italic")
    write(figure, foot, MARGIN, top, FOOTER, colour=FAINT)
    return figure


@dataclass(frozen=True)
class _Panel:
    """One cell of the grid: a heading, so many films below each other, and the lines below them."""

    heading: str
    films: int
    alpha: np.ndarray | None
    words: list[str]
    facts: list[str]

    @property
    def height(self) -> float:
        lines = len(self.words) + len(self.facts)
        pictures = self.films * (PANEL + SPACE)
        return line_height(HEADING) + SPACE + pictures + lines * line_height(TEXT)


def _panels(
    images: int, sentences: Sequence[AttendedSentence], tags: Sequence[tuple[str, float]]
) -> list[_Panel]:
    """The images with the predicted tags, then a panel for each sentence."""
    first = "predicted tags" if tags else _heading(images)
    panels = [_Panel(first, images, None, [], _listed(tags[:PREDICTED_TAGS]))]
    for number, one in enumerate(sentences, start=1):
        words = wrapped(one.text, PANEL, TEXT) if one.text else []
        facts = [] if words else [NO_WORDS]
        facts += [] if one.alpha is None else wrapped(_strength(one.alpha), PANEL, TEXT)
        facts += _listed(_strongest(one))
        films = 0 if one.alpha is None else images
        panels.append(_Panel(f"sentence {number}", films, one.alpha, words, facts))
    if not sentences:
        panels.append(_Panel("report", 0, None, [], [NO_SENTENCES]))
    return panels


def _draw(figure: Figure, panel: _Panel, images: np.ndarray, left: float, top: float) -> None:
    edge = write(figure, [panel.heading], left, top, HEADING, weight="bold") - SPACE
    for number, image in enumerate(images[: panel.films]):
        axes = film(figure, image, left, edge, PANEL)
        edge -= PANEL + SPACE
        if panel.alpha is not None:
            axes.imshow(
                panel.alpha[number],
                extent=(-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5),
                interpolation="bilinear",
                cmap=COLOURS,
                alpha=OPACITY,
                vmin=0,
                vmax=float(panel.alpha.max()),
            )
    edge = write(figure, panel.words, left, edge, TEXT)
    write(figure, panel.facts, left, edge, TEXT, colour=FAINT)


def _scale(figure: Figure, left: float, top: float) -> None:
    """A line with the colours of attention, from none to the strongest."""
    write(figure, ["visual attention:  0"], left, top, TEXT)
    axes = frame(figure, left + 1.2, top, 1.45, line_height(TEXT))
    axes.imshow(legend(256)[None], aspect="auto")
    write(figure, ["each sentence's strongest region"], left + 2.75, top, TEXT)


def _shown(study: AttendedStudy) -> dict[str, object]:
    """The values that the template needs of a study."""
    return {
        "name": study.name,
        "heading": _heading(len(study.images)),
        "height": study.images.shape[1],
        "width": study.images.shape[2],
        "films": list(map(data_uri, study.images)),
        "tags": study.tags[:PREDICTED_TAGS],
        "truth": study.truth,
        "sentences": [
            {"text": one.text, "tags": _strongest(one), "attention": _attention(one.alpha)}
            for one in study.sentences
        ],
    }


def _attention(alpha: np.ndarray | None) -> dict[str, object] | None:
    """The pictures to be laid over the films, with their description in words."""
    if alpha is None:
        return None
    images, rows, columns = alpha.shape
    image, row, column = np.unravel_index(alpha.argmax(), alpha.shape)
    of_image = f"image {image + 1} of {images}, " if images > 1 else ""
    # Browsers smooth a picture of one pixel per region on the screen, but not on paper or in a PDF.
    steps = smooth(alpha, rows * SMOOTHING, columns * SMOOTHING) * (STEPS - 1)
    return {
        "pictures": [data_uri(each, colours(STEPS)) for each in steps.round().astype(np.uint8)],
        "strength": _strength(alpha),
        "place": f"{of_image}row {row + 1} of {rows}, column {column + 1} of {columns}",
    }


def _heading(images: int) -> str:
    return "image" if images == 1 else "images"


def _strength(alpha: np.ndarray) -> str:
    """Each sentence is drawn on its own scale, so whether it is flat or peaked stands in words."""
    return f"strongest region {alpha.max():.3f} ({alpha.max() * alpha.size:.1f} x even)"


def _sentences(studies: Sequence[AttendedStudy]) -> list[AttendedSentence]:
    return [sentence for study in studies for sentence in study.sentences]


def _attends(sentences: Sequence[AttendedSentence]) -> bool:
    return any(sentence.alpha is not None for sentence in sentences)


def _strongest(sentence: AttendedSentence) -> list[tuple[str, float]]:
    return sorted(sentence.tags, key=lambda pair: -pair[1])[:STRONGEST_TAGS]


def _listed(tags: Sequence[tuple[str, float]]) -> list[str]:
    return [line for tag, share in tags for line in wrapped(f"{tag} {share:.2f}", PANEL, TEXT)]
