"""A sweep on one HTML page that opens from disk and makes no network requests."""

import math
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from sqlalchemy.engine import make_url

from raymed.config import Config
from raymed.metrics.scoring import Scores
from raymed.metrics.table import (
    METRICS,
    leaderboard_metrics,
    objective_metric,
    objective_metrics,
    ranking_of,
)
from raymed.reports import sweep_plots as plots
from raymed.reports.attended import AttendedStudy
from raymed.reports.attention import attention_values
from raymed.reports.confirmation import Confirmation
from raymed.reports.page import write_page
from raymed.reports.sweep_plots import Plots
from raymed.reports.sweep_results import STATES, SweepResults
from raymed.storage import AnyPath

TEXT_COLUMNS = ("trial", "state", "reason")
PACKAGES = ("ray", "optuna", "raymed")


@dataclass(frozen=True)
class _Section:
    """A heading, a note, and plots or the reason why there are none."""

    title: str
    note: str
    plots: Plots

    @property
    def drawn(self) -> Sequence[Any]:
        return () if isinstance(self.plots, str) else self.plots


def write_sweep_page(
    out: AnyPath,
    sweep: SweepResults,
    baselines: Mapping[str, Scores],
    samples: Sequence[AttendedStudy],
    no_samples: str,
    note: str,
) -> None:
    """Write the page of a sweep.

    What the page cannot show, such as a plot of too few trials, is explained in words.

    Args:
        out: The HTML file.
        sweep: The contents of the sweep's folder; at least one trial has started.
        baselines: Scores that need no model; empty if they are unknown.
        samples: Studies with the reports that the best trial writes.
        no_samples: Why there are no samples; empty if there are any.
        note: The page's footer.

    Raises:
        UsageError: The page cannot be written.
    """
    sections = _sections(sweep)
    figures = ",".join(figure.to_json() for section in sections for figure in section.drawn)
    write_page(
        out,
        "sweep.html",
        name=sweep.config.run.name,
        facts=_facts(sweep),
        **_scores(sweep, baselines),
        **_confirmation(sweep.confirmation),
        rows=_leaderboard(sweep),
        texts=TEXT_COLUMNS,
        shown=_format,
        sections=sections,
        best=sweep.best,
        no_samples=no_samples,
        configuration=printable_yaml(sweep.config),
        environment=_environment(),
        note=note,
        # No text in a figure can end the script that it stands in.
        figures=Markup("[" + figures.replace("<", "\\u003c") + "]"),
        plotly=Markup(get_plotlyjs()),
        **attention_values(samples),
    )


def printable_yaml(config: Config) -> str:
    """The configuration as YAML, without the database's password, because pages are passed on."""
    storage = config.tune.storage
    if storage and "://" in storage:
        storage = str(make_url(storage).set(query={}))
    return config.override({"tune.storage": storage}).to_yaml()


def _label(sweep: SweepResults, metric: str) -> str:
    """The label of an objective."""
    writes_reports = any(ranking_of(True).key in one.best for one in sweep.trials)
    return objective_metric(metric, writes_reports).label


def _facts(sweep: SweepResults) -> dict[str, str]:
    config = sweep.config
    states = Counter(one.state for one in sweep.trials)
    counts = ", ".join(f"{states[state]} {state}" for state in STATES if states[state])
    objectives = ", ".join(
        f"{_label(sweep, metric)} ({direction})" for metric, direction in sweep.objectives.items()
    )
    return {
        "system": f"{config.model.system}, encoder {config.model.encoder}",
        "dataset": config.data.path,
        "last trial": f"{sweep.last_change:%d %B %Y, %H:%M}",
        "trials": f"{len(sweep.trials)} of {sweep.trials_wanted}: {counts}",
        "searched for": f"{objectives} on the validation split",
        "searched keys": ", ".join(config.tune.space),
    }


def _scores(sweep: SweepResults, baselines: Mapping[str, Scores]) -> dict[str, Any]:
    """The table of the best trial beside the baselines: the metrics that these have as well."""
    metrics = [metric for metric in objective_metrics() if metric.module]
    rows: dict[str, Mapping[str, float | None]] = {}
    if sweep.best:
        rows[f"best trial: {sweep.best}"] = sweep.trials[0].best
    rows |= baselines
    return {
        "score_heads": [metric.label for metric in metrics],
        "scores": {name: [row.get(metric.key) for metric in metrics] for name, row in rows.items()},
    }


def _confirmation(found: Confirmation | str) -> dict[str, Any]:
    """The table of the settings trained over seeds, and what it says."""
    if isinstance(found, str):
        return {"confirmed": found, "confirmed_rows": []}
    heads, rows = found.table()
    return {"confirmed": found.in_words(), "confirmed_heads": heads, "confirmed_rows": rows}


def _leaderboard(sweep: SweepResults) -> list[dict[str, Any]]:
    """One row per trial, by the columns' headings."""
    # The score stands in the column of the metric that it is.
    metrics = [m for m in leaderboard_metrics(one.best for one in sweep.trials) if m.key != "score"]
    several, failed = len(sweep.objectives) > 1, any(one.reason for one in sweep.trials)
    found = sweep.confirmation
    return [
        {
            "place": place,
            "trial": one.trial,
            "state": one.state,
            **{metric.label: one.best.get(metric.key) for metric in metrics},
            **({} if isinstance(found, str) else {"confirmed place": found.place(one.trial)}),
            **({"Pareto front": "yes" if one.pareto else "no"} if several else {}),
            "epochs": one.epochs,
            "seconds": one.seconds,
            **{key: one.values.get(key) for key in sweep.config.tune.space},
            **({"reason": one.reason} if failed else {}),
        }
        for place, one in enumerate(sweep.trials, start=1)
    ]


def _format(head: str, value: object) -> str:
    """A cell of the column with this heading: a metric's as everywhere, else four digits."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if not isinstance(value, float):
        return str(value)
    metric = next((metric for metric in METRICS.values() if metric.label == head), None)
    return metric.format(value) if metric else f"{value:.4g}"


def _sections(sweep: SweepResults) -> list[_Section]:
    space, trials = sweep.config.tune.space, sweep.trials
    metric, direction = next(iter(sweep.objectives.items()))
    first, maximize = _label(sweep, metric), direction == "max"
    importances, compared = plots.importance_plot(sweep.importances)
    sections = [
        _Section("Optimization history", "", plots.history_plot(trials, first, maximize)),
        _Section(
            "Learning curves",
            f"{first} on the validation split after each epoch. The best trial stands out; among "
            "the others, darker is better.",
            plots.learning_plot(sweep.histories, metric, first),
        ),
        _Section(
            "Parallel coordinates",
            f"One line per completed trial across its values and its {first}; None marks a key "
            "that was not searched in the trial.",
            plots.parallel_plot(trials, space, first, maximize),
        ),
        _Section(
            "Slices",
            f"{first} of the completed trials over each searched key; later trials are darker.",
            plots.slice_plots(trials, space, first),
        ),
        _Section("Importances of the searched keys", compared, importances),
        _Section(
            "Threshold curves",
            "CIDEr on the validation split at every stop threshold, from each trial's best "
            f"checkpoint; a point marks the threshold that it decodes with. {sweep.unreadable}",
            plots.threshold_plot(sweep.checkpoints),
        ),
    ]
    if len(sweep.objectives) > 1:
        names = [_label(sweep, metric) for metric in sweep.objectives]
        sections.append(
            _Section(
                "Pareto front",
                "The completed trials. A trial is on the front if no other is better in one "
                "objective and at least as good in all others.",
                plots.pareto_plots(trials, names),
            )
        )
    return sections


def _environment() -> dict[str, str]:
    """The machine on which the page is written."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        **{package: version(package) for package in PACKAGES},
        "system": platform.platform(),
        "processors": f"{os.cpu_count()} ({platform.machine()})",
        "GPU": ", ".join(gpus) or "none",
    }
