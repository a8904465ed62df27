"""The sweep's trials ranked by the best validation CIDEr each has reported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

LEADERBOARD_FILE = "leaderboard.parquet"


@dataclass(frozen=True)
class TrialResult:
    """One trial.

    Attributes:
        trial: its name, also that of its folder below ``trials/``.
        values: the searched keys and what was tried.
        state: ``completed``, ``stopped`` (by ASHA) or ``failed``.
        epochs: reported epochs.
        cider: the highest validation CIDEr of these; None if there is none.
        recall_5: tag recall@5 at that epoch.
        seconds: from the trial's start to its end.
        reason: why it failed.
    """

    trial: str
    values: dict[str, Any]
    state: str
    epochs: int
    cider: float | None
    recall_5: float | None
    seconds: float
    reason: str = ""


def ranked(results: Sequence[TrialResult]) -> list[TrialResult]:
    """By CIDEr, highest first; trials without a score come last."""
    return sorted(results, key=lambda r: (r.cider is None, -(r.cider or 0.0), r.trial))


def leaderboard_table(results: Sequence[TrialResult], baselines: Mapping[str, float]) -> Table:
    """The ranked trials for the terminal, the baselines' validation CIDEr beneath them."""
    keys = list(results[0].values) if results else []
    table = Table(title="trials by validation CIDEr", box=None, padding=(0, 1, 0, 0))
    table.add_column("trial", no_wrap=True)
    for key in keys:
        # Six searched keys and the scores have to stand beside each other on 80 columns.
        table.add_column(key.rpartition(".")[2].replace("_", "_\n"), justify="right", no_wrap=True)
    for head in ("epochs", "CIDEr", "R@5", "state"):
        table.add_column(head, justify="left" if head == "state" else "right", no_wrap=True)
    for result in results:
        table.add_row(
            result.trial,
            *(_shown(result.values.get(key), digits=2) for key in keys),
            str(result.epochs),
            _shown(result.cider),
            _shown(result.recall_5),
            result.state if result.state != "completed" else "",
        )
    table.add_row()
    for name, value in baselines.items():
        table.add_row(name.partition(" ")[0], *[""] * (len(keys) + 1), _shown(value), "", "")
    return table


def write_leaderboard(path: Path, results: Sequence[TrialResult]) -> None:
    """One row per trial, in the order given; each searched key is a column."""
    rows = [
        {
            "place": place,
            "trial": r.trial,
            "state": r.state,
            "epochs": r.epochs,
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


def _shown(value: Any, digits: int = 3) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)
