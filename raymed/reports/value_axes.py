"""Where the values of searched keys lie on a plot's axis, and how they are written there."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raymed.sections import Dimension

MISSING = object()
"""Stands for the value of a key in a trial in which the key was not searched."""
MISSING_TEXT = "None"
MISSING_ROOM = 0.12
"""Height of an axis that is kept for missing values, where there are any."""


@dataclass(frozen=True)
class Axis:
    """One axis of a parallel coordinate plot, from height 0 to 1.

    Attributes:
        heights: One for each trial.
        texts: Each trial's value as text.
        ticks: Heights and texts of the tick marks.
    """

    heights: list[float]
    texts: list[str]
    ticks: list[tuple[float, str]]


def lies_off_axis(dimension: Dimension, value: Any) -> bool:
    """Whether a value, such as 0, has no place on a key's logarithmic axis."""
    return dimension.log_uniform is not None and value is not None and value <= 0


def stand_in(dimension: Dimension) -> float:
    """Where a value that a logarithmic axis lacks is drawn: a little below the range."""
    assert dimension.log_uniform
    low, high = dimension.log_uniform
    return low * (low / high) ** 0.15


def axis_position(dimension: Dimension, value: Any) -> Any:
    """Where a value lies on the axis of its key: a number, or the name of a category."""
    if dimension.choice:
        return category(value)
    return stand_in(dimension) if lies_off_axis(dimension, value) else value


def category(value: Any) -> str:
    """The name of one value of a choice; escaped, because Plotly reads some HTML."""
    return "null" if value is None else html.escape(str(value), quote=False)


def categories(dimension: Dimension) -> list[str]:
    """The names of a choice's values: numbers in ascending order, all else as configured."""
    values = list(dimension.extremes())
    if all(isinstance(value, int | float) for value in values):
        values.sort()
    return list(dict.fromkeys(category(value) for value in values))


def value_axis(dimension: Dimension, values: Sequence[Any]) -> Axis:
    """The axis of a searched key.

    Args:
        dimension: What the key is searched over.
        values: One for each trial, or `MISSING`.
    """
    if dimension.choice:
        return _category_axis(dimension, values)
    positions = [v if v is MISSING else axis_position(dimension, v) for v in values]
    axis = numeric_axis(positions, log=dimension.log_uniform is not None)
    off = dimension.or_value
    if not lies_off_axis(dimension, off):
        return axis
    # What is written at the stand-in is the value that it stands for.
    texts = {f"{stand_in(dimension):.3g}": f"{off:g}"}
    return Axis(
        axis.heights,
        [texts.get(text, text) for text in axis.texts],
        [(height, texts.get(text, text)) for height, text in axis.ticks],
    )


def numeric_axis(values: Sequence[Any], log: bool = False) -> Axis:
    """The axis of numbers, from the least to the greatest.

    Args:
        values: One for each trial, or `MISSING`.
        log: Whether the axis is logarithmic.
    """
    scaled = [v if v is MISSING or not log else math.log10(v) for v in values]
    known = [v for v in scaled if v is not MISSING]
    low, high = min(known), max(known)
    if log:
        marks = sorted({low, *range(math.ceil(low), math.floor(high) + 1), high})
    else:
        marks = [low + (high - low) * part / 4 for part in range(5)] if high > low else [low]
    floor = MISSING_ROOM if len(known) < len(scaled) else 0.0

    def height(value: float) -> float:
        return floor + (1 - floor) * ((value - low) / (high - low) if high > low else 0.5)

    def text(value: float) -> str:
        return f"{10**value if log else value:.3g}"

    missing = [(0.0, MISSING_TEXT)] if floor else []
    return Axis(
        [0.0 if value is MISSING else height(value) for value in scaled],
        [MISSING_TEXT if value is MISSING else text(value) for value in scaled],
        missing + [(height(mark), text(mark)) for mark in marks],
    )


def _category_axis(dimension: Dimension, values: Sequence[Any]) -> Axis:
    names = [MISSING_TEXT if value is MISSING else category(value) for value in values]
    levels = [name for name in categories(dimension) if name in names]
    if any(value is MISSING for value in values):
        levels.insert(0, MISSING_TEXT)
    steps = max(len(levels) - 1, 1)
    heights = {n: rank / steps if len(levels) > 1 else 0.5 for rank, n in enumerate(levels)}
    return Axis([heights[name] for name in names], names, [(h, n) for n, h in heights.items()])
