"""Figure 3: the ground truth beside the reports of several systems.

After figure 3 of Jing et al. (2018): sentences that describe an abnormality are underlined. By
the paper's rule (table 2) that is every sentence without a word of normality.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from raymed.metrics.normality import NORMALITY_WORDS, describes_normality
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
    line_height,
    rule,
    save,
    wrapped,
    write,
)
from raymed.reports.page import data_uri, write_page
from raymed.storage import AnyPath

TRUTH = "ground truth"
RULE = (
    "Underlined: sentences that describe an abnormality, by the paper's rule those with none of "
    f"the words {', '.join(sorted(NORMALITY_WORDS))}."
)

COLUMN = 2.2  # inches: a picture's side and the width of a report
BETWEEN = 0.06  # inches between two sentences
HEADING, TEXT = 10, 8  # points


@dataclass(frozen=True)
class ComparedStudy:
    """A study's images, its true report, and the report of each system.

    Attributes:
        name: The images' names.
        images: uint8 [I, H, W].
        truth: The sentences of the ground truth, each lower-case words.
        reports: The sentences of each system's report, in the order of the columns; all studies
            of a figure have the same systems.
    """

    name: str
    images: np.ndarray
    truth: Sequence[str]
    reports: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class _Block:
    """A sentence, wrapped into lines."""

    lines: list[str]
    underlined: bool = False
    colour: str = "black"


def comparison_page(
    path: AnyPath, studies: Sequence[ComparedStudy], note: str, made_from: str = ""
) -> None:
    """Write one self-contained HTML page with all studies.

    Args:
        path: The HTML file.
        studies: The studies, in the order in which they are shown.
        note: The runs and the split that the page was made from.
        made_from: The same as JSON, which the page contains but does not show.

    Raises:
        UsageError: The file cannot be written.
    """
    write_page(
        path,
        "comparison.html",
        studies=[
            {
                "name": study.name,
                "height": study.images.shape[1],
                "width": study.images.shape[2],
                "films": list(map(data_uri, study.images)),
                "reports": {TRUTH: study.truth, **study.reports},
            }
            for study in studies
        ],
        note=note,
        made_from=made_from,
        rule=RULE,
        abnormal=_abnormal,
    )


def comparison_figure(path: AnyPath, studies: Sequence[ComparedStudy], note: str) -> None:
    """Draw a row for each study: image, ground truth, and each system's report; save it as PNG.

    Args:
        path: The PNG file.
        studies: At least one study, in the order in which they are shown.
        note: The runs and the split that the figure was made from.

    Raises:
        UsageError: The file cannot be written.
    """
    systems = list(studies[0].reports)
    assert all(list(study.reports) == systems for study in studies), "one order of columns"
    heads = [wrapped(name, COLUMN, HEADING, "bold") for name in ("image", TRUTH, *systems)]
    names = [wrapped(study.name, COLUMN, TEXT) for study in studies]
    cells = [
        [_blocks(sentences) for sentences in (study.truth, *study.reports.values())]
        for study in studies
    ]
    heights = [
        max(
            len(study.images) * (COLUMN + 0.04) + len(name) * line_height(TEXT),
            *map(_height, row),
        )
        + GAP
        for study, name, row in zip(studies, names, cells, strict=True)
    ]
    width = len(heads) * (COLUMN + GAP) - GAP + 2 * MARGIN
    notes = [line for text in (RULE, note) for line in wrapped(text, width - 2 * MARGIN, TEXT)]
    foot = footer(width)
    head = max(map(len, heads)) * line_height(HEADING) + 0.06
    below = len(notes) * line_height(TEXT) + len(foot) * line_height(FOOTER)
    tall = 2 * MARGIN + head + sum(heights) + below
    figure = canvas(width, tall)

    lefts = [MARGIN + column * (COLUMN + GAP) for column in range(len(heads))]
    for left, lines in zip(lefts, heads, strict=True):
        write(figure, lines, left, tall - MARGIN, HEADING, weight="bold")
    top = tall - MARGIN - head
    for study, name, row, height in zip(studies, names, cells, heights, strict=True):
        rule(figure, MARGIN, width - MARGIN, top + 0.03, 0.5, FAINT)
        level = top - 0.04
        for image in study.images:
            film(figure, image, MARGIN, level, COLUMN)
            level -= COLUMN + 0.04
        write(figure, name, MARGIN, level, TEXT, colour=FAINT)
        for left, blocks in zip(lefts[1:], row, strict=True):
            _draw(figure, blocks, left, top)
        top -= height
    rule(figure, MARGIN, width - MARGIN, top + 0.03, 0.5, FAINT)
    top = write(figure, notes, MARGIN, top, TEXT, style="italic")
    write(figure, foot, MARGIN, top, FOOTER, colour=FAINT)
    save(figure, path)


def _draw(figure: Figure, blocks: Sequence[_Block], left: float, top: float) -> None:
    """Write the sentences of a report below each other."""
    for one in blocks:
        bottom = write(
            figure, one.lines, left, top, TEXT, colour=one.colour, underlined=one.underlined
        )
        top = bottom - BETWEEN


def _abnormal(sentence: str) -> bool:
    return bool(sentence) and not describes_normality(sentence)


def _blocks(sentences: Sequence[str]) -> list[_Block]:
    if not sentences:
        return [_Block([NO_SENTENCES], colour=FAINT)]
    return [
        _Block(wrapped(sentence, COLUMN, TEXT), _abnormal(sentence))
        if sentence
        else _Block([NO_WORDS], colour=FAINT)
        for sentence in sentences
    ]


def _height(blocks: Sequence[_Block]) -> float:
    return sum(len(block.lines) * line_height(TEXT) + BETWEEN for block in blocks)
