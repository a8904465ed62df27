"""Rows of metrics without what a clock says."""

from collections.abc import Iterable
from pathlib import Path

from raymed.training.log import METRICS_FILE, read_metrics
from raymed.training.observer import Row

TIMES = {"images_per_second", "seconds", "seconds_per_report"}


def untimed(rows: Iterable[Row]) -> list[Row]:
    """The rows without times, which no two runs share."""
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def rows_of(folder: Path) -> list[Row]:
    """A run's table of metrics, without times."""
    return untimed(read_metrics(folder / METRICS_FILE))
