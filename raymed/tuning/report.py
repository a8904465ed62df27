"""`raymed report`: a sweep on one HTML page that opens from disk and asks no address for anything.

It reads the sweep's folder and Optuna's study and writes nothing but the page, so a sweep that
runs or was interrupted can be reported as well.
"""

import math
import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import optuna
import torch
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from sqlalchemy.engine import make_url

from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.errors import UsageError
from raymed.evaluation import baseline_scores
from raymed.figures import SHOWN, abnormal_rows, attended_studies
from raymed.reports.attention import AttendedStudy, attention_values
from raymed.reports.page import write_page
from raymed.run_folder import SweepFolder
from raymed.storage import AnyPath
from raymed.training.checkpoint import Checkpoint
from raymed.training.observer import Row
from raymed.tuning import plots
from raymed.tuning.leaderboard import STATES, TrialResult, ranked_trials
from raymed.tuning.plots import Plots
from raymed.tuning.space import size
from raymed.tuning.study import objectives, open_study

SPLIT = "val"
NAMES = {
    "cider": "CIDEr",
    "recall_5": "tag recall@5",
    "seconds_per_report": "seconds per report",
    "stop_threshold": "best threshold",
    "top_tags": "best M",
}
"""What a trial's metrics are called; those of its best epoch are the leaderboard's columns."""
TEXTS = ("trial", "state", "reason")
PACKAGES = ("ray", "optuna", "raymed")


@dataclass(frozen=True)
class _Sweep:
    """What a sweep's folder holds.

    Attributes:
        config: that it was started with.
        study: Optuna's.
        results: of the trials, from the best to the worst.
        histories: rows of metrics by trial, in the same order.
        checkpoints: the best one of each trial that has one, in the same order.
        unread: why some of these could not be opened.
    """

    config: Config
    study: optuna.Study
    results: list[TrialResult]
    histories: dict[str, list[Row]]
    checkpoints: dict[str, Checkpoint]
    unread: str

    @property
    def measures(self) -> list[str]:
        """What was searched for."""
        return list(objectives(self.config.tune))

    @property
    def best(self) -> str | None:
        """The first trial of the leaderboard, if any has reported a score."""
        return self.results[0].trial if self.results[0].best else None

    def name(self, measure: str) -> str:
        """Of a metric, for people; the score is the CIDEr where reports are written."""
        if measure == "score":
            measure = "cider" if any("cider" in one.best for one in self.results) else "recall_5"
        return NAMES.get(measure, measure)


@dataclass(frozen=True)
class _Section:
    """A heading, what is to be known, and plots or the reason why there are none."""

    title: str
    note: str
    plots: Plots

    @property
    def drawn(self) -> Sequence[Any]:
        return () if isinstance(self.plots, str) else self.plots


def write_report(folder: AnyPath, out: AnyPath) -> None:
    """Write the page of a sweep.

    What the page cannot show (a plot of too few trials, reports of a dataset that is elsewhere),
    it says in words.

    Args:
        folder: of the sweep.
        out: the HTML file.

    Raises:
        UsageError: there is no sweep, its study cannot be opened, or the page cannot be written.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sweep = _read(folder)
    samples, no_samples = _samples(sweep)
    sections = _sections(sweep)
    figures = ",".join(figure.to_json() for section in sections for figure in section.drawn)
    write_page(
        out,
        "report.html",
        name=sweep.config.run.name,
        facts=_facts(sweep),
        scores=_scores(sweep),
        rows=_leaderboard(sweep),
        texts=TEXTS,
        shown=_shown,
        sections=sections,
        best=sweep.best,
        no_samples=no_samples,
        configuration=printed(sweep.config),
        environment=_environment(),
        note=f"Written by raymed {version('raymed')} from {folder}",
        # No text in a figure can end the script that it stands in.
        figures=Markup("[" + figures.replace("<", "\\u003c") + "]"),
        plotly=Markup(get_plotlyjs()),
        **attention_values(samples),
    )


def _read(folder: AnyPath) -> _Sweep:
    sweep_folder = SweepFolder(folder)
    config = sweep_folder.config()
    study = open_study(config, folder)
    results = ranked_trials(study, config, folder)
    if not results:
        raise UsageError(f"{folder}: no trial of the sweep has begun; wait for the first")
    histories, checkpoints, faults = {}, {}, []
    for one in results:
        run = sweep_folder.trial(one.trial)
        histories[one.trial] = run.history()
        if one.epochs:
            try:
                checkpoints[one.trial] = run.best_checkpoint()
            except UsageError as error:
                faults.append(str(error))
    unread = f"{len(faults)} cannot be opened; the first: {faults[0]}" if faults else ""
    return _Sweep(config, study, results, histories, checkpoints, unread)


def _facts(sweep: _Sweep) -> dict[str, str]:
    config = sweep.config
    states = Counter(one.state for one in sweep.results)
    counted = ", ".join(f"{states[state]} {state}" for state in STATES.values() if states[state])
    # More than are wanted where tune.trials was lowered.
    number = max(size(config.tune.space, config.tune.trials), len(sweep.results))
    trials = sweep.study.get_trials(deepcopy=False)
    last = max(filter(None, (one.datetime_complete or one.datetime_start for one in trials)))
    wanted = ", ".join(
        f"{sweep.name(measure)} ({direction})"
        for measure, direction in objectives(config.tune).items()
    )
    return {
        "system": f"{config.model.system}, encoder {config.model.encoder}",
        "dataset": config.data.path,
        "last trial": f"{last:%d %B %Y, %H:%M}",
        "trials": f"{len(sweep.results)} of {number}: {counted}",
        "searched for": f"{wanted} on the validation split",
        "searched keys": ", ".join(config.tune.space),
    }


def _scores(sweep: _Sweep) -> list[tuple[str, float | None, float | None]]:
    """CIDEr and tag recall of the best trial and, where the dataset is there, of no model."""
    config, best = sweep.config, sweep.results[0].best
    scores: list[tuple[str, float | None, float | None]] = []
    if sweep.best:
        scores.append((f"best trial: {sweep.best}", best.get("cider"), best["recall_5"]))
    try:
        dataset = PreparedDataset.open(config.data.path)
    except UsageError:
        return scores
    baselines = baseline_scores(dataset, SPLIT, config.data.validation_images)
    return scores + [(name, *score) for name, score in baselines.items()]


def _leaderboard(sweep: _Sweep) -> list[dict[str, Any]]:
    """A row for each trial, by the columns' heads."""
    metrics = [metric for metric in NAMES if any(metric in one.best for one in sweep.results)]
    several, failed = len(sweep.measures) > 1, any(one.reason for one in sweep.results)
    return [
        {
            "place": place,
            "trial": one.trial,
            "state": one.state,
            **{NAMES[metric]: one.best.get(metric) for metric in metrics},
            **({"Pareto front": "yes" if one.pareto else "no"} if several else {}),
            "epochs": one.epochs,
            "seconds": one.seconds,
            **{key: one.values.get(key) for key in sweep.config.tune.space},
            **({"reason": one.reason} if failed else {}),
        }
        for place, one in enumerate(sweep.results, start=1)
    ]


def _shown(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _sections(sweep: _Sweep) -> list[_Section]:
    space, measures = sweep.config.tune.space, sweep.measures
    first = sweep.name(measures[0])
    study = plots.readable(sweep.study, space)
    importances, compared = plots.importance_plot(study)
    best = {one.trial: one.objectives[0] for one in sweep.results if one.best}
    sections = [
        _Section("Optimisation history", "", plots.history_plot(study, first, best)),
        _Section(
            "Learning curves",
            f"{first} on the validation split after each epoch. The best trial stands out; of the "
            "others, the better the darker.",
            plots.learning_plot(sweep.histories, measures[0], first),
        ),
        _Section(
            "Parallel coordinates",
            f"A line for each completed trial over its values and its {first}; None: a key that "
            "the trial was not asked for.",
            plots.parallel_plot(study, space, first),
        ),
        _Section(
            "Slices",
            f"{first} of the completed trials over each searched key; the later the darker.",
            plots.slice_plots(study, space, first),
        ),
        _Section("Importances of the searched keys", compared, importances),
        _Section(
            "Threshold curves",
            "CIDEr on the validation split at every stop threshold, of each trial's best "
            f"checkpoint; a point marks the threshold that it decodes with. {sweep.unread}",
            plots.threshold_plot(sweep.checkpoints),
        ),
    ]
    if len(measures) > 1:
        names = [sweep.name(measure) for measure in measures]
        sections.append(
            _Section(
                "Pareto front",
                "The completed trials; none is better than one on the front in some respect and as "
                "good in the others.",
                plots.pareto_plots(sweep.study, names),
            )
        )
    return sections


def _samples(sweep: _Sweep) -> tuple[Sequence[AttendedStudy], str]:
    """Reports that the best trial writes, or why there are none."""
    checkpoint = sweep.checkpoints.get(sweep.best or "")
    if checkpoint is None:
        return [], sweep.unread or "No trial has a checkpoint yet."
    try:
        split = PreparedDataset.open(sweep.config.data.path).split(SPLIT)
    except UsageError as error:
        return [], str(error)
    rows = abnormal_rows(split)[:SHOWN]
    if not rows:
        return [], "No report of the validation split describes an abnormality."
    return attended_studies(checkpoint, split, rows), ""


def printed(config: Config) -> str:
    """A configuration as YAML, without its database's password, because pages are passed on."""
    storage = config.tune.storage and _masked(config.tune.storage)
    return config.override({"tune.storage": storage}).to_yaml()


def _masked(place: str) -> str:
    return str(make_url(place).set(query={})) if "://" in place else place


def _environment() -> dict[str, str]:
    """Of the machine that writes the page."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        **{package: version(package) for package in PACKAGES},
        "system": platform.platform(),
        "processors": f"{os.cpu_count()} ({platform.machine()})",
        "GPU": ", ".join(gpus) or "none",
    }
