"""The sweep's trials ranked by what each has reached on the validation split."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
from optuna.trial import FrozenTrial, TrialState
from rich.markup import escape
from rich.table import Table

from raymed.config import Config
from raymed.evaluation import Baseline
from raymed.run_folder import SweepFolder
from raymed.storage import AnyPath, user_output
from raymed.training.checkpoint import best_epoch
from raymed.training.observer import Row
from raymed.tuning.space import proposed
from raymed.tuning.study import REASON, begun, objectives
from raymed.tuning.trial import trial_name

LEADERBOARD_FILE = "leaderboard.parquet"
STATES = {
    TrialState.COMPLETE: "completed",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
}
LONGEST = 20
"""Trials that the terminal's table shows; the file has all."""
SHOWN_METRICS = ("score", "cider", "recall_5", "seconds_per_report", "stop_threshold", "top_tags")


@dataclass(frozen=True)
class TrialResult:
    """One trial, as Optuna's study and its own table of metrics tell of it.

    Attributes:
        trial: its name, also that of its folder below ``trials/``.
        values: the searched keys and what was tried.
        state: ``completed``, ``stopped`` early, ``failed``, or ``unfinished``.
        epochs: reported epochs.
        best: the metrics of the epoch with the highest validation score; none if it has none.
        objectives: the objectives' values at that epoch, the first of which ranks the trials.
        pareto: no other trial whose values the study has is better in one objective and as good
            in the others.
        seconds: of training and validation.
        reason: why it failed.
    """

    trial: str
    values: dict[str, Any]
    state: str
    epochs: int
    best: Row
    objectives: tuple[float, ...]
    pareto: bool
    seconds: float
    reason: str = ""

    @property
    def score(self) -> float | None:
        return self.best.get("score")


def ranked_trials(study: optuna.Study, config: Config, folder: AnyPath) -> list[TrialResult]:
    """Every trial of a sweep once, by the first objective, best first; failed ones come last."""
    trials = begun(study)
    results = [_result(trial, config, folder) for trial in trials]
    signs = [1 if mode == "max" else -1 for mode in objectives(config.tune).values()]
    goodness = {
        r.trial: tuple(s * v for s, v in zip(signs, r.objectives, strict=True))
        for r in results
        if r.best
    }
    complete = {trial_name(t.number) for t in trials if t.state == TrialState.COMPLETE}
    told = complete & goodness.keys()
    front = _front(goodness[name] for name in told)
    results = [replace(r, pareto=r.trial in told and goodness[r.trial] in front) for r in results]
    return sorted(results, key=lambda r: (not r.best, -goodness.get(r.trial, (0,))[0], r.trial))


def leaderboard_table(results: Sequence[TrialResult], baselines: Mapping[str, Baseline]) -> Table:
    """The ranked trials for the terminal, the baselines' beneath them."""
    several = len(results[0].objectives) > 1
    table = Table(title="trials by validation score", box=None, padding=(0, 2, 0, 0))
    table.add_column("trial", no_wrap=True)
    heads = ("CIDEr", "R@5", "epochs", *(("ms/report", "Pareto") if several else ()))
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    # However many keys are searched, only this column grows.
    table.add_column("searched values")
    for result in results[:LONGEST]:
        state = "" if result.state == "completed" else f" [{result.state}]"
        time = result.best.get("seconds_per_report")
        extra = ("-" if time is None else f"{1000 * time:.1f}", "*" if result.pareto else "")
        free = {k: result.best[k] for k in ("stop_threshold", "top_tags") if k in result.best}
        found = f"; found {shown(free)}" if free else ""
        table.add_row(
            result.trial,
            _score(result.best.get("cider")),
            _score(result.best.get("recall_5")),
            str(result.epochs),
            *(extra if several else ()),
            escape(shown(result.values) + found + state),
        )
    if len(results) > LONGEST:
        table.add_row(f"… {len(results) - LONGEST} more", *[""] * (len(table.columns) - 1))
    for name, value in baselines.items():
        table.add_row(name, _score(value.cider), _score(value.recall_5))
    return table


def write_leaderboard(path: AnyPath, results: Sequence[TrialResult], config: Config) -> None:
    """One row per trial, in the order given; each searched key is a column.

    Raises:
        UsageError: it cannot be written.
    """
    keys = [k for k in SHOWN_METRICS if any(k in r.best for r in results)]
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
            **{key: r.values.get(key) for key in config.tune.space},
        }
        for place, r in enumerate(results, start=1)
    ]
    with user_output(path) as partial:
        pq.write_table(pa.Table.from_pylist(rows), partial)


def shown(values: Mapping[Any, Any]) -> str:
    """Keys and values on a line."""
    return ", ".join(
        f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()
    )


def _result(trial: FrozenTrial, config: Config, folder: AnyPath) -> TrialResult:
    name = trial_name(trial.number)
    history = SweepFolder(folder).trial(name).history()
    best = history[best_epoch(history) - 1] if history else {}
    state = STATES[trial.state]
    if state == "completed" and len(history) < config.training.epochs:
        # Of several objectives Optuna knows no pruned trial.
        state = "stopped"
    return TrialResult(
        trial=name,
        values=proposed(trial.params, config.tune.space),
        state=state,
        epochs=len(history),
        best=best,
        objectives=tuple(best[k] for k in objectives(config.tune)) if best else (),
        pareto=False,
        seconds=sum(row["seconds"] for row in history),
        reason=trial.user_attrs.get(REASON, ""),
    )


def _front(points: Iterable[tuple[float, ...]]) -> set[tuple[float, ...]]:
    """Those that no other one dominates. Thousands of trials are too many to compare in pairs."""
    front: list[tuple[float, ...]] = []
    # In this order what dominates a point comes before it.
    for point in sorted(set(points), reverse=True):
        if not any(_dominates(other, point) for other in front):
            front.append(point)
    return set(front)


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def _score(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"
