"""Confirming a sweep: its best trials' settings and the file's own, each trained over seeds.

The best of many trials is also the luckiest: its score is too high, and other settings may be as
good. So the seeds here are new ones, settings are ranked by their means on the validation split,
and the test split, which has decided nothing, says by how much they differ.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ray.actor import ActorHandle
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from raymed.config import SEARCH_DEFAULTS, Config
from raymed.data.dataset import PreparedDataset
from raymed.errors import UsageError
from raymed.launch.parallel_runs import initialise_runs, is_scored, read_scores, run_jobs
from raymed.metrics.differences import paired_difference
from raymed.metrics.resampling import study_numbers
from raymed.metrics.table import Metric, objective_metric, objective_metrics
from raymed.model.systems import system_class
from raymed.predictions_file import FEATURES, PER_REPORT_FILE
from raymed.reports.confirmation import OWN, Confirmation, ConfirmedSettings
from raymed.reports.sweep_results import TrialResult
from raymed.run_folder import RunFolder, SweepFolder
from raymed.storage import AnyPath, local_copy, user_output
from raymed.training.observer import best_so_far
from raymed.tuning.study import objectives

SPLIT = "test"
CONFIRMED_FILE = "confirmed.parquet"
SEEDS = 2**32
"""Seeds are below this."""
NO_CONTENDER = "nothing to confirm: no trial has a score and other settings than the file's own"


@dataclass(frozen=True)
class Contender:
    """Settings to be confirmed.

    Attributes:
        name: The trial's name, or `OWN`.
        rank: The trial's place in the search, from 1; None for the file's own settings.
        searched: The trial's score in the search.
        values: The searched keys and their values.
        runs: The configuration of the run with each seed.
    """

    name: str
    rank: int | None
    searched: float | None
    values: Mapping[str, Any]
    runs: Mapping[RunFolder, Config]


def check_confirm(config: Config, dataset: PreparedDataset) -> None:
    """Check that a sweep can be confirmed, if it is to be.

    Raises:
        UsageError: Naming the key and what to do.
    """
    if config.tune.confirm is None:
        return
    if "training.seed" in config.tune.space:
        raise UsageError(
            "tune.confirm: trains the same settings with several seeds, so training.seed cannot be "
            "searched as well; remove it from tune.space, or remove tune.confirm"
        )
    key, direction = next(iter(objectives(config.tune).items()))
    known = ["score", *(metric.key for metric in objective_metrics() if metric.module)]
    if direction != "max" or key not in known:
        raise UsageError(
            "tune.confirm: ranks settings by the first of tune.objectives, which must be "
            f"{', '.join(known[:-1])} or {known[-1]} (max), not {key} ({direction}); name another "
            "one first, or remove tune.confirm"
        )
    studies = set()
    if dataset.info.counts.get(SPLIT):
        split, of_reports = dataset.split(SPLIT), confirm_metric(config).of == "reports"
        # An image without tags has no recall.
        images = zip(split.studies, split.tags, strict=True)
        studies = {study for study, tags in images if of_reports or tags}
    if len(studies) < 2:
        raise UsageError(
            f"tune.confirm: needs at least two studies to score in the {SPLIT} split, and "
            f"{dataset.path} has {len(studies)}; prepare it with another split, or remove "
            "tune.confirm"
        )


def confirm_metric(config: Config) -> Metric:
    """The metric of the first objective."""
    writes_reports = system_class(config.model.system).writes_reports
    return objective_metric(next(iter(objectives(config.tune))), writes_reports)


def contenders(results: Sequence[TrialResult], config: Config, folder: AnyPath) -> list[Contender]:
    """The file's own settings, and those of the best trials that differ from them.

    There are none if the trials have no other settings, or no score.

    Args:
        results: The finished search's trials, best first.
        config: The sweep's configuration.
        folder: The sweep's folder.
    """
    assert config.tune.confirm is not None
    best = [(rank, one) for rank, one in enumerate(results, start=1) if one.best]
    other = [(rank, one) for rank, one in best if config.override(one.values) != config]
    if not other:
        return []
    own = {key: _value(config, key) for key in config.tune.space}
    return [
        Contender(OWN, None, None, own, _runs(OWN, {}, config, folder)),
        *(
            Contender(
                one.trial,
                rank,
                one.objectives[0],
                one.values,
                _runs(one.trial, one.values, config, folder),
            )
            for rank, one in other[: config.tune.confirm.top]
        ),
    ]


def seeds(config: Config) -> tuple[int, ...]:
    """The seeds of a confirmation: those after `training.seed`, which has chosen the trials."""
    assert config.tune.confirm is not None
    count = config.tune.confirm.seeds
    return tuple((config.training.seed + n) % SEEDS for n in range(1, count + 1))


def count_runs(config: Config) -> int:
    """How many runs a confirmation has at most; 0 without one."""
    confirm = config.tune.confirm
    return (confirm.top + 1) * confirm.seeds if confirm else 0


def unfinished_runs(wanted: Sequence[Contender]) -> dict[RunFolder, Config]:
    """The runs that are not trained and scored yet, the first seed of all settings first."""
    runs = [
        pair
        for by_seed in zip(*(one.runs.items() for one in wanted), strict=True)
        for pair in by_seed
    ]
    return {run: config for run, config in runs if not is_scored(run)}


def describe(wanted: Sequence[Contender], config: Config) -> Iterator[str]:
    """What is confirmed, for the console, a line each."""
    assert config.tune.confirm is not None
    trials, count = len(wanted) - 1, sum(len(one.runs) for one in wanted)
    done = count - len(unfinished_runs(wanted))
    if trials < config.tune.confirm.top:
        yield (
            f"tune.confirm.top is {config.tune.confirm.top}, but the number of trials with a score "
            f"and other settings than the file's own is {trials}"
        )
    best = "the best trial" if trials == 1 else f"the {trials} best trials"
    several = len(objectives(config.tune)) > 1
    yield (
        f"confirmation: {best} and the file's own settings with seeds "
        f"{', '.join(map(str, seeds(config)))}: {count} runs"
        + (f", of which {done} are finished already" if done else "")
        + (f"; ranked by {confirm_metric(config).label}, the first objective" if several else "")
    )


def run_confirmation(
    wanted: Sequence[Contender],
    config: Config,
    dataset: PreparedDataset,
    queue: ActorHandle,
    first: int,
    console: Console,
) -> None:
    """Train and score the runs that are not finished, on worker groups that are running.

    A run that fails is reported; its settings are not ranked.

    Args:
        wanted: The settings to confirm.
        config: The sweep's configuration, and so the worker groups'.
        dataset: The dataset that the runs are trained on.
        queue: The queue that the worker groups take jobs from.
        first: The first free number of a job.
        console: Gets a line for each run that ends.

    Raises:
        RayActorError: The queue died.
        UsageError: A run's folder has other content.
    """
    initialise_runs({run: own for one in wanted for run, own in one.runs.items()}, dataset)
    unfinished = unfinished_runs(wanted)
    if not unfinished:
        return
    metric = confirm_metric(config)

    def outcome(run: RunFolder) -> str:
        validation, test, _ = _scores(run, unfinished[run], metric)
        label = metric.label
        return f"validation {label} {metric.format(validation)}, test {metric.format(test)}"

    failures = run_jobs(queue, unfinished, config, SPLIT, outcome, console, first)
    if failures:
        console.print(
            f"{len(failures)} of {len(unfinished)} runs failed, so their settings are not ranked; "
            "run the same command again to retry them",
            highlight=False,
        )


def read_confirmation(wanted: Sequence[Contender], config: Config) -> Confirmation:
    """What the runs that are finished have found."""
    metric = confirm_metric(config)
    own_runs = [*wanted[0].runs]
    own = _scores_of_each(own_runs, metric) if all(map(is_scored, own_runs)) else None
    settings = []
    for one in wanted:
        scores = [_scores(run, own_config, metric) for run, own_config in one.runs.items()]
        validation, test, nearest = zip(*scores, strict=True)
        difference = None
        if one.rank is not None and own is not None and None not in test:
            gaps = _scores_of_each([*one.runs], metric) - own
            # An image without tags has no recall.
            known = ~np.isnan(gaps).any(axis=0)
            difference = paired_difference(gaps[:, known], _studies(own_runs[0])[known])
        settings.append(
            ConfirmedSettings(
                one.name, one.rank, one.searched, one.values, validation, test, difference, nearest
            )
        )
    # Where means are equal, the file's own settings come first, then the search's order.
    settings.sort(key=lambda one: (not one.is_finished, one.is_finished and -one.validation_mean))
    return Confirmation(metric, seeds(config), settings)


def confirmation_table(found: Confirmation) -> Table:
    """For the terminal."""
    heads, rows = found.table()
    table = Table(
        title=f"{found.metric.label} over seeds {', '.join(map(str, found.seeds))}",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for head in heads:
        table.add_column(head, justify="left" if head == heads[0] else "right")
    for row in rows:
        table.add_row(*row)
    return table


def write_confirmation(path: AnyPath, found: Confirmation) -> None:
    """Write a row for each of the settings, as Parquet; each searched key is a column.

    Raises:
        UsageError: The file cannot be written.
    """
    rows = [
        {
            "place": found.place(one.name),
            "settings": one.name,
            "rank": one.rank,
            "search": one.searched,
            "seeds": [*found.seeds],
            "validation": [*one.validation],
            "test": [*one.test],
            "nearest": [*one.nearest],
            "difference": one.difference and one.difference.mean,
            "low": one.difference and one.difference.low,
            "high": one.difference and one.difference.high,
            **{key: one.values.get(key) for key in found.settings[0].values},
        }
        for one in found.settings
    ]
    with user_output(path) as partial:
        pq.write_table(pa.Table.from_pylist(rows), partial)


def _value(config: Config, key: str) -> Any:
    section, _, name = key.partition(".")
    return config.model_dump(mode="json", by_alias=True)[section][name]


def _runs(
    name: str, values: Mapping[str, Any], config: Config, folder: AnyPath
) -> dict[RunFolder, Config]:
    """The configuration of the run with each seed."""
    runs = {}
    for seed in seeds(config):
        run = SweepFolder(folder).confirming(name, seed)
        runs[run] = config.override(
            {
                **values,
                **SEARCH_DEFAULTS,
                "tune.confirm": None,
                "training.seed": seed,
                "run.folder": str(run.path.parent),
                "run.name": run.path.name,
            }
        )
    return runs


def _scores(
    run: RunFolder, config: Config, metric: Metric
) -> tuple[float | None, float | None, float | None]:
    """A run's scores on the validation and on the test split, None if it is not finished.

    The third is that of the nearest image by the features of its encoder on the test split.
    """
    if not is_scored(run):
        return None, None, None
    rows = read_scores(run)["rows"]
    nearest = rows.get(FEATURES, {}).get(metric.key)
    return best_so_far(run.history())[metric.key], rows[config.model.system][metric.key], nearest


def _scores_of_each(runs: Sequence[RunFolder], metric: Metric) -> np.ndarray:
    """The test score of each image [runs, images]."""
    return np.stack([_of_run(run, metric) for run in runs])


def _of_run(run: RunFolder, metric: Metric) -> np.ndarray:
    with local_copy(run.scored / PER_REPORT_FILE) as file:
        column = pq.read_table(file, columns=[metric.key]).column(0)
        return column.to_numpy(zero_copy_only=False)


def _studies(run: RunFolder) -> np.ndarray:
    """The study of each test image, as an integer [images]."""
    with local_copy(run.scored / PER_REPORT_FILE) as file:
        studies = pq.read_table(file, columns=["study"]).column(0)
        return study_numbers(studies.to_pylist(), len(studies))
