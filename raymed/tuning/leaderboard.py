"""A sweep's trials ranked by what each has reached on the validation split."""

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
from optuna.trial import FrozenTrial, TrialState
from rich.markup import escape
from rich.table import Table

from raymed.config import Config
from raymed.metrics.scoring import Scores
from raymed.metrics.table import leaderboard_metrics, objective_metrics
from raymed.reports.confirmation import Confirmation
from raymed.reports.sweep_results import TrialResult
from raymed.run_folder import SweepFolder
from raymed.storage import AnyPath, user_output
from raymed.training.observer import best_so_far, is_finished
from raymed.tuning.space import to_values
from raymed.tuning.study import REASON, objectives, started_trials
from raymed.tuning.trial import trial_name

LEADERBOARD_FILE = "leaderboard.parquet"
STATES = {
    TrialState.COMPLETE: "completed",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
}
MAX_ROWS = 20
"""Number of trials in the terminal's table; the file has all of them."""


def ranked_trials(study: optuna.Study, config: Config, folder: AnyPath) -> list[TrialResult]:
    """Every started trial of a sweep, best first by the first objective; failed ones come last."""
    front = {trial.number for trial in study.best_trials}
    results = [
        _result(trial, config, folder, trial.number in front) for trial in started_trials(study)
    ]
    sign = 1 if next(iter(objectives(config.tune).values())) == "max" else -1

    def rank(result: TrialResult) -> tuple[bool, float, str]:
        return not result.best, -sign * result.objectives[0] if result.best else 0.0, result.trial

    return sorted(results, key=rank)


def leaderboard_table(results: Sequence[TrialResult], baselines: Mapping[str, Scores]) -> Table:
    """The ranked trials as a table for the terminal, followed by the baselines."""
    several = len(results[0].objectives) > 1
    table = Table(title="trials by validation score", box=None, padding=(0, 2, 0, 0))
    table.add_column("trial", no_wrap=True)
    metrics = [metric for metric in objective_metrics() if metric.module]
    heads = (
        *(metric.column for metric in metrics),
        "epochs",
        *(("ms/report", "Pareto") if several else ()),
    )
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    # Only this column grows with the number of searched keys.
    table.add_column("searched values")
    for result in results[:MAX_ROWS]:
        state = "" if result.state == "completed" else f" [{result.state}]"
        time = result.best.get("seconds_per_report")
        extra = ("-" if time is None else f"{1000 * time:.1f}", "*" if result.pareto else "")
        free = {k: result.best[k] for k in ("stop_threshold", "top_tags") if k in result.best}
        found = f"; found {format_values(free)}" if free else ""
        table.add_row(
            result.trial,
            *(metric.format(result.best.get(metric.key)) for metric in metrics),
            str(result.epochs),
            *(extra if several else ()),
            escape(format_values(result.values) + found + state),
        )
    if len(results) > MAX_ROWS:
        table.add_row(f"… {len(results) - MAX_ROWS} more", *[""] * (len(table.columns) - 1))
    for name, value in baselines.items():
        table.add_row(name, *(metric.format(value.get(metric.key)) for metric in metrics))
    return table


def write_leaderboard(
    path: AnyPath,
    results: Sequence[TrialResult],
    config: Config,
    confirmation: Confirmation | None = None,
) -> None:
    """Write one row per trial, in the order given; each searched key is a column.

    With a confirmation, its place and mean scores are columns too.

    Raises:
        UsageError: The file cannot be written.
    """
    keys = [metric.key for metric in leaderboard_metrics(r.best for r in results)]
    rows = [
        {
            "place": place,
            "trial": r.trial,
            "state": r.state,
            "epochs": r.epochs,
            **{key: r.best.get(key) for key in keys},
            **({"pareto": r.pareto} if len(config.tune.objectives) > 1 else {}),
            "seconds": r.seconds,
            "reason": r.reason,
            **(confirmation.columns(r.trial) if confirmation else {}),
            **{key: r.values.get(key) for key in config.tune.space},
        }
        for place, r in enumerate(results, start=1)
    ]
    with user_output(path) as partial:
        pq.write_table(pa.Table.from_pylist(rows), partial)


def format_values(values: Mapping[Any, Any]) -> str:
    """Keys and values on one line."""
    return ", ".join(
        f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()
    )


def _result(trial: FrozenTrial, config: Config, folder: AnyPath, pareto: bool) -> TrialResult:
    name = trial_name(trial.number)
    history = SweepFolder(folder).trial(name).history()
    best = best_so_far(history) if history else {}
    evaluated = trial.state == TrialState.COMPLETE
    state = STATES[trial.state]
    if state == "completed" and not is_finished(history, config.training):
        # Optuna has no pruned trials of several objectives.
        state = "stopped"
    if best:
        reached = tuple(best[metric] for metric in objectives(config.tune))
    else:
        # The metrics may have been deleted since.
        reached = tuple(trial.values) if evaluated else ()
    return TrialResult(
        number=trial.number,
        trial=name,
        values=to_values(trial.params, config.tune.space),
        state=state,
        evaluated=evaluated,
        epochs=len(history),
        best=best,
        objectives=reached,
        pareto=pareto,
        seconds=sum(row["seconds"] for row in history),
        reason=trial.user_attrs.get(REASON, ""),
    )
