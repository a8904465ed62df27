"""Figure 4: where the model looked and which tags it thought of, sentence by sentence.

After figure 4 of Jing et al. (2018): for each sentence the visual attention over the image, the
three tags of highest semantic attention, and the sentence; beside them the ground truth.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from raymed.reports.drawing import (
    FAINT,
    NO_SENTENCES,
    NO_WORDS,
    canvas,
    film,
    frame,
    line_height,
    save,
    wrapped,
    write,
)
from raymed.reports.page import data_uri, write_page
from raymed.storage import AnyPath

COLUMNS = 4
STRONGEST_TAGS = 3
PREDICTED_TAGS = 5

COLOURS = colormaps["inferno"]
OPACITY = 0.45
"""Of the attention over the image: the film is still to be read where nothing was looked at."""

STEPS = 64
SMOOTHING = 8
"""Colours, and pixels to a region, of a page's picture of attention: no step is seen in either."""

_RAMP = np.arange(STEPS, dtype=np.uint8)[None].repeat(4, axis=0)

PANEL = 2.9  # inches: a picture's side and the width of the text below it
GAP = 0.25
MARGIN = 0.2
SPACE = 0.04
TITLE, HEADING, TRUTH, TEXT = 12, 10, 9, 8  # points


@dataclass(frozen=True)
class AttendedSentence:
    """A generated sentence and its attention.

    Attributes:
        text: its words.
        alpha: visual attention [h, w] over the regions, summing to 1; None for a system that
            does not attend to regions.
        tags: the semantic features' tags with their attention beta, summing to 1; empty for a
            system that does not attend to tags.
    """

    text: str
    alpha: np.ndarray | None
    tags: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class AttendedStudy:
    """An image, its generated report with the attention of each sentence, and the truth.

    Attributes:
        name: of the image.
        image: uint8 [H, W], as the model saw it.
        sentences: of the generated report, in order.
        tags: predicted tags with their probability, the likeliest first.
        truth: sentences of the report that a person wrote; None where it is not known.
    """

    name: str
    image: np.ndarray
    sentences: Sequence[AttendedSentence]
    tags: Sequence[tuple[str, float]]
    truth: Sequence[str] | None


def attention_page(
    path: AnyPath, studies: Sequence[AttendedStudy], note: str, made_from: str = ""
) -> None:
    """Write one HTML page over all studies; it holds all it shows.

    A study's film is in the page once, and each sentence's attention is a small picture that the
    browser lays over it: 2 KB or so a sentence, where a film blended with its attention is 100.

    Args:
        path: of the HTML file.
        studies: shown in this order.
        note: which run, checkpoint and split this is from.
        made_from: the same as JSON, which the page holds unseen.

    Raises:
        UsageError: the file cannot be written.
    """
    values = attention_values(studies)
    write_page(path, "attention.html", note=note, made_from=made_from, **values)


def attention_values(studies: Sequence[AttendedStudy]) -> dict[str, object]:
    """What the template ``attention.html``, or one that extends it, asks of the studies."""
    return {
        "studies": [_shown(study) for study in studies],
        "scale": data_uri(_RAMP, _seen(STEPS)) if _attends(_sentences(studies)) else None,
        "opacity": OPACITY,
    }


def attention_figure(
    path: AnyPath,
    image: np.ndarray,
    sentences: Sequence[AttendedSentence],
    tags: Sequence[tuple[str, float]],
    title: str,
    truth: str | None = None,
) -> None:
    """Draw one study's figure and save it as PNG.

    Args:
        path: of the PNG.
        image: uint8 [H, W], as the model saw it.
        sentences: of the report, in order.
        tags: predicted tags with their probability, the likeliest first.
        title: such as the image's name.
        truth: the report that was written by a person, if it is known.

    Raises:
        UsageError: the file cannot be written.
    """
    first = "predicted tags" if tags else "image"
    panels = [_Panel(first, True, None, [], _listed(tags[:PREDICTED_TAGS]))]
    for number, one in enumerate(sentences, start=1):
        words = wrapped(one.text, PANEL, TEXT) if one.text else []
        facts = [] if words else [NO_WORDS]
        facts += [] if one.alpha is None else wrapped(_strength(one.alpha), PANEL, TEXT)
        facts += _listed(_strongest(one))
        panels.append(_Panel(f"sentence {number}", one.alpha is not None, one.alpha, words, facts))
    if not sentences:
        panels.append(_Panel("report", False, None, [], [NO_SENTENCES]))
    columns = min(COLUMNS, len(panels))
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    heights = [max(panel.height for panel in row) + GAP for row in rows]
    width = columns * (PANEL + GAP) - GAP + 2 * MARGIN
    heading = wrapped(title, width - 2 * MARGIN, TITLE)
    known = wrapped(f"ground truth: {truth}", width - 2 * MARGIN, TRUTH) if truth else []
    legend = 2 * line_height(TEXT) if _attends(sentences) else 0
    head = len(heading) * line_height(TITLE) + 0.1
    tall = 2 * MARGIN + head + sum(heights) + legend + len(known) * line_height(TRUTH)
    figure = canvas(width, tall)

    write(figure, heading, MARGIN, tall - MARGIN, TITLE)
    top = tall - MARGIN - head
    for row, below in zip(rows, heights, strict=True):
        for column, panel in enumerate(row):
            _draw(figure, panel, image, MARGIN + column * (PANEL + GAP), top)
        top -= below
    if legend:
        _legend(figure, MARGIN, top)
    write(figure, known, MARGIN, top - legend, TRUTH, style="italic")
    save(figure, path)


@dataclass(frozen=True)
class _Panel:
    """One place of the grid: a heading, the film if it is shown, and the lines below it."""

    heading: str
    film: bool
    alpha: np.ndarray | None
    words: list[str]
    facts: list[str]

    @property
    def height(self) -> float:
        lines = len(self.words) + len(self.facts)
        picture = PANEL + SPACE if self.film else 0
        return line_height(HEADING) + SPACE + picture + lines * line_height(TEXT)


def _draw(figure: Figure, panel: _Panel, image: np.ndarray, left: float, top: float) -> None:
    edge = write(figure, [panel.heading], left, top, HEADING, weight="bold") - SPACE
    if panel.film:
        axes = film(figure, image, left, edge, PANEL)
        edge -= PANEL + SPACE
        if panel.alpha is not None:
            axes.imshow(
                panel.alpha,
                extent=(-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5),
                interpolation="bilinear",
                cmap=COLOURS,
                alpha=OPACITY,
                vmin=0,
                vmax=float(panel.alpha.max()),
            )
    edge = write(figure, panel.words, left, edge, TEXT)
    write(figure, panel.facts, left, edge, TEXT, colour=FAINT)


def _legend(figure: Figure, left: float, top: float) -> None:
    """The colours of attention, from none to the strongest, in one line."""
    write(figure, ["visual attention:  0"], left, top, TEXT)
    axes = frame(figure, left + 1.2, top, 1.45, line_height(TEXT))
    axes.imshow(_seen(256)[None], aspect="auto")
    write(figure, ["each sentence's strongest region"], left + 2.75, top, TEXT)


def _colours(count: int) -> np.ndarray:
    """The colours from no attention to the strongest, uint8 [count, 3]."""
    colours: np.ndarray = COLOURS(np.linspace(0, 1, count), bytes=True)[:, :3]
    return colours


def _seen(count: int) -> np.ndarray:
    """The same as they are seen over mid-grey film."""
    return (OPACITY * _colours(count) + (1 - OPACITY) * 127.5).round().astype(np.uint8)


def _shown(study: AttendedStudy) -> dict[str, object]:
    """What the template asks of a study."""
    return {
        "name": study.name,
        "height": study.image.shape[0],
        "width": study.image.shape[1],
        "film": data_uri(study.image),
        "tags": study.tags[:PREDICTED_TAGS],
        "truth": study.truth,
        "sentences": [
            {"text": one.text, "tags": _strongest(one), "attention": _attention(one.alpha)}
            for one in study.sentences
        ],
    }


def _attention(alpha: np.ndarray | None) -> dict[str, object] | None:
    """The picture laid over the film, and what it shows in words."""
    if alpha is None:
        return None
    rows, columns = alpha.shape
    row, column = np.unravel_index(alpha.argmax(), alpha.shape)
    # Smoothed here: on paper and in a PDF, a picture of a pixel per region stays one of squares.
    steps = Image.fromarray((alpha * ((STEPS - 1) / alpha.max())).astype(np.float32))
    smooth = steps.resize((columns * SMOOTHING, rows * SMOOTHING), Image.Resampling.BILINEAR)
    return {
        "picture": data_uri(np.asarray(smooth).round().astype(np.uint8), _colours(STEPS)),
        "strength": _strength(alpha),
        "place": f"row {row + 1} of {rows}, column {column + 1} of {columns}",
    }


def _strength(alpha: np.ndarray) -> str:
    """Every sentence is drawn on its own scale, so its height is said: flat or steep."""
    return f"strongest region {alpha.max():.3f} ({alpha.max() * alpha.size:.1f} x even)"


def _sentences(studies: Sequence[AttendedStudy]) -> list[AttendedSentence]:
    return [sentence for study in studies for sentence in study.sentences]


def _attends(sentences: Sequence[AttendedSentence]) -> bool:
    return any(sentence.alpha is not None for sentence in sentences)


def _strongest(sentence: AttendedSentence) -> list[tuple[str, float]]:
    return sorted(sentence.tags, key=lambda pair: -pair[1])[:STRONGEST_TAGS]


def _listed(tags: Sequence[tuple[str, float]]) -> list[str]:
    return [line for tag, share in tags for line in wrapped(f"{tag} {share:.2f}", PANEL, TEXT)]
