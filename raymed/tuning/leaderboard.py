"""The sweep's trials ranked by the best validation score each has reported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.markup import escape
from rich.table import Table

from raymed.evaluation import Baseline

LEADERBOARD_FILE = "leaderboard.parquet"


@dataclass(frozen=True)
class TrialResult:
    """One trial.

    Attributes:
        trial: its name, also that of its folder below ``trials/``.
        values: the searched keys and what was tried.
        state: ``completed``, ``stopped`` (by ASHA) or ``failed``.
        epochs: reported epochs.
        score: the highest validation score of these, by which trials are ranked: the CIDEr, or of
            a system that writes no report the tag recall@5; None if there is none.
        cider: at that epoch.
        recall_5: tag recall@5 at that epoch.
        seconds: from the trial's start to its end.
        reason: why it failed.
    """

    trial: str
    values: dict[str, Any]
    state: str
    epochs: int
    score: float | None
    cider: float | None
    recall_5: float | None
    seconds: float
    reason: str = ""


def ranked(results: Sequence[TrialResult]) -> list[TrialResult]:
    """By score, highest first; trials without one come last."""
    return sorted(results, key=lambda r: (r.score is None, -(r.score or 0.0), r.trial))


def leaderboard_table(results: Sequence[TrialResult], baselines: Mapping[str, Baseline]) -> Table:
    """The ranked trials for the terminal, the baselines' beneath them."""
    table = Table(title="trials by validation score", box=None, padding=(0, 2, 0, 0))
    table.add_column("trial", no_wrap=True)
    for head in ("CIDEr", "R@5", "epochs"):
        table.add_column(head, justify="right", no_wrap=True)
    # However many keys are searched, only this column grows.
    table.add_column("searched values")
    for result in results:
        state = "" if result.state == "completed" else f" [{result.state}]"
        table.add_row(
            result.trial,
            _shown(result.cider),
            _shown(result.recall_5),
            str(result.epochs),
            escape(", ".join(f"{k} {_value(v)}" for k, v in result.values.items()) + state),
        )
    for name, value in baselines.items():
        table.add_row(name, _shown(value.cider), _shown(value.recall_5))
    return table


def write_leaderboard(path: Path, results: Sequence[TrialResult]) -> None:
    """One row per trial, in the order given; each searched key is a column."""
    rows = [
        {
            "place": place,
            "trial": r.trial,
            "state": r.state,
            "epochs": r.epochs,
            "score": r.score,
            "cider": r.cider,
            "recall_5": r.recall_5,
            "seconds": r.seconds,
            "reason": r.reason,
            **r.values,
        }
        for place, r in enumerate(results, start=1)
    ]
    partial = path.with_suffix(".partial")
    pq.write_table(pa.Table.from_pylist(rows), partial)
    partial.replace(path)


def _shown(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
