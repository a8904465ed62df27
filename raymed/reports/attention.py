"""The attention figure: where the model looked and which tags it thought of, sentence by sentence.

After figure 4 of Jing et al. (2018): for each sentence the visual attention over the image, the
three tags of highest semantic attention, and the sentence.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLUMNS = 4
STRONGEST_TAGS = 3


@dataclass(frozen=True)
class AttendedSentence:
    """A generated sentence and its attention.

    Attributes:
        text: its words.
        alpha: visual attention [h, w] over the regions, summing to 1.
        tags: the semantic features' tags with their attention beta, summing to 1.
    """

    text: str
    alpha: np.ndarray
    tags: Sequence[tuple[str, float]]


def attention_figure(
    path: Path,
    image: np.ndarray,
    sentences: Sequence[AttendedSentence],
    tags: Sequence[tuple[str, float]],
    title: str,
    truth: str | None = None,
) -> None:
    """Draw a figure and save it as PNG.

    Args:
        path: of the PNG.
        image: uint8 [H, W], as the model saw it.
        sentences: of the report, in order.
        tags: predicted tags with their probability, the likeliest first.
        title: such as the image's name.
        truth: the report that was written by a person, if it is known.
    """
    panels = 1 + len(sentences)
    columns = min(COLUMNS, panels)
    rows = -(-panels // columns)
    note = textwrap.fill(f"ground truth: {truth}", 38 * columns) if truth else ""
    below = 0.2 * (note.count("\n") + 2) if note else 0.1
    captions = [_listed(tags[:5]), *map(_caption, sentences)]
    text = 0.14 * max(caption.count("\n") + 1 for caption in captions) + 0.1
    between = text + 0.3
    height = 0.75 + 2.8 * rows + between * (rows - 1) + text + below
    figure = Figure(figsize=(3.2 * columns, height))
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        rows,
        columns,
        left=0.02,
        right=0.98,
        top=1 - 0.75 / height,
        bottom=(below + text) / height,
        hspace=between / 2.8,
        wspace=0.08,
    )
    # Names and tags are shown as they are: no formula is meant by a dollar sign.
    figure.suptitle(title, fontsize=12, y=1 - 0.12 / height, va="top", parse_math=False)
    axes = [figure.add_subplot(grid[divmod(panel, columns)]) for panel in range(panels)]
    titles = ["predicted tags", *(f"sentence {number}" for number in range(1, panels))]
    for axis, heading, caption in zip(axes, titles, captions, strict=True):
        _show(axis, image, heading, caption)
    for axis, sentence in zip(axes[1:], sentences, strict=True):
        axis.imshow(
            sentence.alpha,
            extent=(-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5),
            interpolation="bilinear",
            cmap="inferno",
            alpha=0.45,
            vmin=0,
            vmax=float(sentence.alpha.max()),
        )
    if note:
        figure.text(
            0.02, 0.08 / height, note, fontsize=9, va="bottom", style="italic", parse_math=False
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _show(axis: Axes, image: np.ndarray, title: str, text: str) -> None:
    axis.imshow(image, cmap="gray", vmin=0, vmax=255)
    axis.set_title(title, fontsize=10)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.text(
        0.5,
        -0.04,
        text,
        transform=axis.transAxes,
        ha="center",
        va="top",
        fontsize=8,
        parse_math=False,
    )


def _caption(sentence: AttendedSentence) -> str:
    strongest = sorted(sentence.tags, key=lambda pair: -pair[1])[:STRONGEST_TAGS]
    return (textwrap.fill(sentence.text, 38) or "(no words)") + "\n" + _listed(strongest)


def _listed(tags: Sequence[tuple[str, float]]) -> str:
    return "\n".join(f"{tag} {share:.2f}" for tag, share in tags)
