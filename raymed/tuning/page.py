"""`raymed report`: reads a sweep's folder and its study, and has the sweep's page drawn.

Nothing but the page is written, so a sweep that is running or was interrupted can be reported too.
"""

from collections.abc import Sequence
from importlib.metadata import version

import optuna

from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.data.studies import open_examples
from raymed.errors import UsageError
from raymed.evaluation import baseline_scores
from raymed.figures import SHOWN, abnormal_rows, attended_studies
from raymed.metrics.scoring import Scores
from raymed.reports.attended import AttendedStudy
from raymed.reports.confirmation import Confirmation
from raymed.reports.sweep_page import write_sweep_page
from raymed.reports.sweep_results import SweepResults, TrialResult
from raymed.run_folder import SweepFolder
from raymed.storage import AnyPath
from raymed.tuning.confirm import NO_CONTENDER, contenders, read_confirmation
from raymed.tuning.importance import importances
from raymed.tuning.leaderboard import ranked_trials
from raymed.tuning.space import count_points
from raymed.tuning.study import objectives, open_study, trials_left

SPLIT = "val"


def write_report(folder: AnyPath, out: AnyPath) -> None:
    """Write the page of a sweep.

    Args:
        folder: The sweep's folder.
        out: The HTML file.

    Raises:
        UsageError: There is no sweep, its study cannot be opened, or the page cannot be written.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sweep = read_sweep(folder)
    samples, no_samples = _samples(sweep)
    note = f"Written by raymed {version('raymed')} from {folder}"
    write_sweep_page(out, sweep, _baselines(sweep.config), samples, no_samples, note)


def read_sweep(folder: AnyPath) -> SweepResults:
    """Read what a sweep's folder and its study hold.

    Raises:
        UsageError: There is no sweep, no trial has started, or the study cannot be opened.
    """
    sweep = SweepFolder(folder)
    config = sweep.config()
    study = open_study(config, folder)
    results = ranked_trials(study, config, folder)
    if not results:
        raise UsageError(f"{folder}: no trial of the sweep has started; wait for the first")
    checkpoints, faults = {}, []
    for result in results:
        if result.epochs:
            try:
                checkpoints[result.trial] = sweep.trial(result.trial).best_checkpoint()
            except UsageError as error:
                faults.append(str(error))
    trials = study.get_trials(deepcopy=False)
    return SweepResults(
        config=config,
        objectives=objectives(config.tune),
        trials=results,
        # There are more than tune.trials where that was lowered.
        trials_wanted=max(count_points(config.tune.space, config.tune.trials), len(results)),
        last_change=max(filter(None, (t.datetime_complete or t.datetime_start for t in trials))),
        histories={one.trial: sweep.trial(one.trial).history() for one in results},
        checkpoints=checkpoints,
        unreadable=f"{len(faults)} cannot be opened; the first: {faults[0]}" if faults else "",
        importances=importances(study, config.tune.space),
        confirmation=_confirmation(study, results, config, folder),
    )


def _confirmation(
    study: optuna.Study, results: Sequence[TrialResult], config: Config, folder: AnyPath
) -> Confirmation | str:
    """What is known of the confirmation, or why there is none."""
    if config.tune.confirm is None:
        return (
            "The best of many trials is also the luckiest. tune.confirm={top: 3, seeds: 3} would "
            "train the best trials' settings over seeds, beside the file's own."
        )
    if trials_left(study, config.tune):
        return "It follows once the search has ended."
    wanted = contenders(results, config, folder)
    return read_confirmation(wanted, config) if wanted else f"There is {NO_CONTENDER}."


def _baselines(config: Config) -> dict[str, Scores]:
    """Scores that need no model; empty where the dataset is not at hand."""
    try:
        dataset = PreparedDataset.open(config.data.path)
    except UsageError:
        return {}
    data = config.data
    return baseline_scores(dataset, SPLIT, data.validation_images, data.images_per_study)


def _samples(sweep: SweepResults) -> tuple[Sequence[AttendedStudy], str]:
    """Studies with the reports that the best trial writes, or why there are none."""
    checkpoint = sweep.checkpoints.get(sweep.best or "")
    if checkpoint is None:
        return [], sweep.unreadable or "No trial has a checkpoint yet."
    try:
        dataset = PreparedDataset.open(sweep.config.data.path)
        split = open_examples(dataset, SPLIT, checkpoint.config.data.images_per_study)
    except UsageError as error:
        return [], str(error)
    rows = abnormal_rows(split)[:SHOWN]
    if not rows:
        return [], "No report of the validation split describes an abnormality."
    return attended_studies(checkpoint, split, rows), ""
