"""Figure 3: the ground truth beside the reports of several systems.

After figure 3 of Jing et al. (2018): sentences that describe an abnormality are underlined. By
the paper's rule (table 2) that is every sentence without a word of normality.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raymed.metrics.normality import NORMALITY_WORDS, describes_normality
from raymed.reports.drawing import (
    FAINT,
    NO_SENTENCES,
    NO_WORDS,
    canvas,
    film,
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
GAP = 0.25
MARGIN = 0.2
BETWEEN = 0.06  # of two sentences
HEADING, TEXT = 10, 8  # points


@dataclass(frozen=True)
class ComparedStudy:
    """An image, its true report, and what each system wrote.

    Attributes:
        name: of the image.
        image: uint8 [H, W].
        truth: sentences of the ground truth, each lower-case words.
        reports: system -> sentences, in the order of the columns; every study of a figure has
            the same systems.
    """

    name: str
    image: np.ndarray
    truth: Sequence[str]
    reports: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class _Block:
    """A sentence in its lines."""

    lines: list[str]
    underlined: bool = False
    colour: str = "black"


def comparison_page(
    path: AnyPath, studies: Sequence[ComparedStudy], note: str, made_from: str = ""
) -> None:
    """Write one HTML page over all studies; it holds all it shows.

    Args:
        path: of the HTML file.
        studies: shown in this order.
        note: which runs and split this is from.
        made_from: the same as JSON, which the page holds unseen.

    Raises:
        UsageError: the file cannot be written.
    """
    write_page(
        path,
        "comparison.html",
        studies=[
            {
                "name": study.name,
                "height": study.image.shape[0],
                "width": study.image.shape[1],
                "film": data_uri(study.image),
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
        path: of the PNG.
        studies: at least one, shown in this order.
        note: which runs and split this is from.

    Raises:
        UsageError: the file cannot be written.
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
        max(COLUMN + 0.04 + len(name) * line_height(TEXT), *map(_height, row)) + GAP
        for name, row in zip(names, cells, strict=True)
    ]
    width = len(heads) * (COLUMN + GAP) - GAP + 2 * MARGIN
    foot = [line for text in (RULE, note) for line in wrapped(text, width - 2 * MARGIN, TEXT)]
    head = max(map(len, heads)) * line_height(HEADING) + 0.06
    tall = 2 * MARGIN + head + sum(heights) + len(foot) * line_height(TEXT)
    figure = canvas(width, tall)

    lefts = [MARGIN + column * (COLUMN + GAP) for column in range(len(heads))]
    for left, lines in zip(lefts, heads, strict=True):
        write(figure, lines, left, tall - MARGIN, HEADING, weight="bold")
    top = tall - MARGIN - head
    for study, name, row, below in zip(studies, names, cells, heights, strict=True):
        rule(figure, MARGIN, width - MARGIN, top + 0.03, 0.5, FAINT)
        film(figure, study.image, MARGIN, top - 0.04, COLUMN)
        write(figure, name, MARGIN, top - 0.08 - COLUMN, TEXT, colour=FAINT)
        for left, blocks in zip(lefts[1:], row, strict=True):
            edge = top
            for block in blocks:
                edge = write(
                    figure,
                    block.lines,
                    left,
                    edge,
                    TEXT,
                    colour=block.colour,
                    underlined=block.underlined,
                )
                edge -= BETWEEN
        top -= below
    rule(figure, MARGIN, width - MARGIN, top + 0.03, 0.5, FAINT)
    write(figure, foot, MARGIN, top, TEXT, style="italic")
    save(figure, path)


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
