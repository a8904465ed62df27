"""The sweep: Optuna proposes trials, Ray Train worker groups train them; bad ones stop early.

With `tune.confirm` the same groups then train the best trials' settings over seeds.

All that is known of a sweep lies in its folder: the study, and each trial's checkpoints. So the
same command resumes it, whatever was killed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from textwrap import wrap
from typing import TYPE_CHECKING

import optuna
from ray import tune
from ray.exceptions import RayActorError
from rich.console import Console

from raymed.absolute_paths import with_absolute_paths
from raymed.config import SEARCH_DEFAULTS, Config
from raymed.data.dataset import PreparedDataset
from raymed.errors import UsageError
from raymed.evaluation import baseline_scores
from raymed.launch.cluster import connected
from raymed.launch.groups import worker_groups
from raymed.launch.parallel_runs import require_worker_groups
from raymed.launch.trainer import check_room
from raymed.metrics.scoring import Scores
from raymed.metrics.table import METRICS, ranking_of
from raymed.model.systems import system_class
from raymed.reports.confirmation import Confirmation
from raymed.reports.model_card import write_model_card
from raymed.reports.sweep_results import TrialResult
from raymed.run_folder import SweepFolder
from raymed.storage import AnyPath, local_copy, user_output
from raymed.training.setup import check, check_model
from raymed.tuning.confirm import (
    CONFIRMED_FILE,
    NO_CONTENDER,
    Contender,
    check_confirm,
    confirmation_table,
    contenders,
    count_runs,
    describe,
    read_confirmation,
    run_confirmation,
    unfinished_runs,
    write_confirmation,
)
from raymed.tuning.leaderboard import (
    LEADERBOARD_FILE,
    leaderboard_table,
    ranked_trials,
    write_leaderboard,
)
from raymed.tuning.progress import SweepProgress
from raymed.tuning.space import points
from raymed.tuning.study import (
    REPEATED,
    claim_study,
    objectives,
    proposed_trials,
    refuse_foreign_study,
    started_trials,
    trials_left,
    trials_wanted,
)
from raymed.tuning.tuner import run_tuner, silence_tune

if TYPE_CHECKING:
    import pandas

BEST_FILE = "best.yaml"
COMMENT_WIDTH = 98
MAX_QUEUE_STARTS = 3
"""How often the queue of trials is started before a sweep gives up."""
CHECKED_TOGETHER = (
    "model.system",
    "model.encoder",
    "model.hidden_size",
    "model.embedding_size",
    "model.tie_embeddings",
    "model.top_tags",
)
"""The keys that `check_model` compares with each other or with the dataset."""


@dataclass(frozen=True)
class Sweep:
    """A finished sweep.

    Attributes:
        folder: The sweep's folder.
        results: The trials, best first.
        baselines: Scores of the baselines by name.
        confirmation: What `tune.confirm` found; None without it, or before the search has ended.
        grid: Tune's results of the trials trained by this call; None if all were already done.
    """

    folder: AnyPath
    results: list[TrialResult]
    baselines: dict[str, Scores]
    confirmation: Confirmation | None = None
    grid: tune.ResultGrid | None = None

    @property
    def leaderboard(self) -> AnyPath:
        """The leaderboard's file."""
        return self.folder / LEADERBOARD_FILE

    def dataframe(self) -> "pandas.DataFrame":
        """The leaderboard, a row for each trial, best first."""
        import pandas

        with local_copy(self.leaderboard) as file:
            return pandas.read_parquet(file)

    @property
    def best_config(self) -> AnyPath:
        """The best configuration, as a file for `raymed train`: the confirmed one, if any is."""
        return self.folder / BEST_FILE

    @property
    def best(self) -> AnyPath:
        """The folder of the best run: with the confirmed settings the one of the first seed, which
        no score has chosen; without a confirmation the best trial's."""
        folder = SweepFolder(self.folder)
        if self.confirmation and self.confirmation.winner:
            confirmed = self.confirmation.winner.name
            return folder.confirming(confirmed, self.confirmation.seeds[0]).path
        return folder.trial(self.results[0].trial).path


def run_sweep(config: Config, console: Console, callbacks: Sequence[tune.Callback] = ()) -> Sweep:
    """Run or resume a sweep and its confirmation, and write their results to its folder.

    Args:
        config: The sweep's configuration.
        console: Where to print.
        callbacks: Callbacks for Ray Tune, such as Ray's own for MLflow, W&B and Comet. In a resumed
            sweep they see the trials that are left, and of a resumed trial the epochs that are.

    Raises:
        UsageError: The space is empty, the folder is another sweep's or in use, a trial would not
            fit the cluster or the dataset, or no trial has reported a score.
    """
    config = with_absolute_paths(config)
    dataset = check_sweep(config)
    sweep = SweepFolder.of(config)
    folder = sweep.path
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sweep.refuse_changed(config)
    refuse_foreign_study(config, folder)
    grid = None
    with sweep.open(config):
        study = claim_study(config, folder, dataset, partial(_print, console))
        _print_state(study, config, console)
        baselines = baseline_scores(
            dataset, "val", config.data.validation_images, config.data.images_per_study
        )
        if trials_left(study, config.tune) or unfinished_runs(_contenders(study, config, folder)):
            silence_tune()
            with connected(config.launch.address):
                grid = _run_phases(study, config, dataset, folder, console, callbacks)
        results, confirmation = _write_results(study, config, folder)
    _print_remainder(study, config, console)
    console.print(leaderboard_table(results, baselines))
    if confirmation:
        console.print(confirmation_table(confirmation))
        _print(console, confirmation.in_words())
    elif config.tune.confirm and not trials_left(study, config.tune):
        _print(console, NO_CONTENDER)
    found = Sweep(folder, results, baselines, confirmation, grid)
    write_model_card(found.best, partial(_print, console))
    return found


def _run_phases(
    study: optuna.Study,
    config: Config,
    dataset: PreparedDataset,
    folder: AnyPath,
    console: Console,
    callbacks: Sequence[tune.Callback],
) -> tune.ResultGrid | None:
    """Search and confirm; if the queue of trials dies, start another one and resume them."""
    grid = None
    for _ in range(MAX_QUEUE_STARTS):
        died, found = _search_and_confirm(study, config, dataset, folder, console, callbacks)
        grid = found or grid
        if not died:
            return grid
        console.print("the queue of trials died; resuming them from their last checkpoints")
    raise UsageError(
        f"{folder}: the queue of trials died {MAX_QUEUE_STARTS} times, perhaps for lack of memory; "
        "run the same command again to resume the trials from their last checkpoints"
    )


def _search_and_confirm(
    study: optuna.Study,
    config: Config,
    dataset: PreparedDataset,
    folder: AnyPath,
    console: Console,
    callbacks: Sequence[tune.Callback],
) -> tuple[bool, tune.ResultGrid | None]:
    """Run what is left of both phases on the same worker groups.

    Returns:
        Whether the queue died; and Tune's results, if there were trials left.
    """
    room = check_room(config, config.tune.groups or 1)
    left = trials_left(study, config.tune)
    runs = count_runs(config) if left else len(unfinished_runs(_contenders(study, config, folder)))
    groups = min(room, config.tune.groups or room, max(left, runs))
    workers = f"worker groups: {groups}, of {config.launch.workers} worker(s) each"
    grid = None
    with worker_groups(config, groups, jobs=left + runs, name=config.run.name) as queue:
        if left:
            _print(console, f"search: {left} trials over {', '.join(config.tune.space)}; {workers}")
            done = ranked_trials(study, config, folder)
            with SweepProgress(config, console, queue, done) as progress:
                limit = min(groups, left)
                grid = run_tuner(study, config, folder, limit, queue, progress, callbacks)
            if progress.queue_lost or trials_left(study, config.tune):
                return progress.queue_lost, grid
            # What the search has found stands, whatever becomes of the confirmation.
            _write_results(study, config, folder)
        if wanted := _contenders(study, config, folder):
            for line in describe(wanted, config):
                _print(console, line if left else f"{line}; {workers}")
            first = len(study.get_trials(deepcopy=False))
            try:
                run_confirmation(wanted, config, dataset, queue, first, console)
            except RayActorError:
                return True, grid
    return False, grid


def _contenders(study: optuna.Study, config: Config, folder: AnyPath) -> list[Contender]:
    """The settings to be confirmed; none before the search has ended, or without tune.confirm."""
    if config.tune.confirm is None or trials_left(study, config.tune):
        return []
    return contenders(ranked_trials(study, config, folder), config, folder)


def _write_results(
    study: optuna.Study, config: Config, folder: AnyPath
) -> tuple[list[TrialResult], Confirmation | None]:
    """Write leaderboard and best configuration; returns the trials, best first, and what is known.

    Raises:
        UsageError: No trial has reported a score.
    """
    results = ranked_trials(study, config, folder)
    if not results or results[0].score is None:
        reason = f"; the first {results[0].reason}" if results else ""
        raise UsageError(f"{folder}: no trial has reported a score{reason}")
    wanted = _contenders(study, config, folder)
    confirmation = read_confirmation(wanted, config) if wanted else None
    write_leaderboard(folder / LEADERBOARD_FILE, results, config, confirmation)
    if confirmation:
        write_confirmation(folder / CONFIRMED_FILE, confirmation)
    winner = confirmation and confirmation.winner
    best = config.override(
        {
            **(winner.values if winner else results[0].values),
            **SEARCH_DEFAULTS,
            "tune.confirm": None,
            "run.name": f"{config.run.name}-best",
        }
    )
    found = f"{results[0].trial}, rank 1 of the search; not confirmed over seeds."
    if confirmation and winner:
        found = confirmation.in_words()
    comment = "".join(f"# {line}\n" for line in wrap(found, COMMENT_WIDTH, break_on_hyphens=False))
    with user_output(folder / BEST_FILE) as partial_file:
        partial_file.write_text(comment + best.to_yaml(), encoding="utf-8")
    return results, confirmation


def check_sweep(config: Config) -> PreparedDataset:
    """Check that there is something to search, and that every proposal will fit the dataset.

    Raises:
        UsageError: Naming the key.
    """
    if not config.tune.space:
        raise UsageError(
            "tune.space: is empty; give a key to search, such as "
            "`tune.space.loss.tag={log_uniform: [0.1, 10]}`"
        )
    require_worker_groups(config, "sweep")
    _check_objectives(config)
    dataset = check(config)
    _check_models(config, dataset)
    check_confirm(config, dataset)
    return dataset


def _check_models(config: Config, dataset: PreparedDataset) -> None:
    """Check every combination of models that can be proposed, of a range its ends and a value."""
    space = {}
    for key in (key for key in config.tune.space if key in CHECKED_TOGETHER):
        dimension = config.tune.space[key]
        when = {other: of for other, of in dimension.when.items() if other in CHECKED_TOGETHER}
        low, high = dimension.integer or (0, 0)
        some = {"integer": None, "choice": (low, low + 1, high)} if dimension.integer else {}
        space[key] = dimension.model_copy(update={"when": when, **some})
    for values in points(space):
        try:
            check_model(config.override(values), dataset)
        except UsageError as error:
            proposal = ", ".join(f"{key}={value}" for key, value in values.items())
            raise UsageError(f"tune.space: proposes {proposal}: {error}") from error


def _check_objectives(config: Config) -> None:
    """Check that every trial has each objective, and that it means the same in all of them."""
    dimension = config.tune.space.get("model.system")
    searched = [*dimension.extremes()] if dimension else []
    if dimension is None or dimension.when or config.tune.confirm:
        searched.append(config.model.system)
    writing = [system for system in searched if system_class(system).writes_reports]
    tags_only = [system for system in searched if system not in writing]
    key = f"{'tune.space: ' if dimension else ''}model.system"
    wanted = objectives(config.tune)
    of_tags, of_reports = ranking_of(writes_reports=False), ranking_of(writes_reports=True)
    advice = f"tune.objectives={{{of_tags.key}: {of_tags.direction}}}"
    of_reports_only = [METRICS[name] for name in wanted if METRICS[name].of == "reports"]
    if of_reports_only and tags_only:
        missing = of_reports_only[0]
        raise UsageError(
            f"tune.objectives: {missing.key}: {tags_only[0]} ({key}) writes no reports and has no "
            f"{missing.label}; choose other systems, or {advice}"
        )
    if "score" in wanted and tags_only and writing:
        raise UsageError(
            f"{key}: the score of {tags_only[0]} is the {of_tags.label} and that of {writing[0]} "
            f"the {of_reports.label}, which cannot be compared; search systems of one kind, or set "
            f"{advice}"
        )


def _print_state(study: optuna.Study, config: Config, console: Console) -> None:
    """Print how many trials there are to be, and how many of them are done."""
    trials, wanted = started_trials(study), trials_wanted(config.tune)
    if wanted < config.tune.trials:
        _print(
            console,
            f"tune.space has {wanted} different points, so there are {wanted} trials, "
            f"not {config.tune.trials}",
        )
    if not trials:
        return
    running = sum(not trial.state.is_finished() for trial in trials)
    done = len(trials) - running
    text = f"{done} of {wanted}" if done <= wanted else f"{done}"
    text += " trials are already done"
    if resumed := min(running, trials_left(study, config.tune)):
        text += f", resuming {resumed} from their last checkpoints"
    if done > wanted:
        text += f"; tune.trials is {wanted}, so there are none to add"
    _print(console, text)


def _print_remainder(study: optuna.Study, config: Config, console: Console) -> None:
    """Print what was not trained: repeated proposals, and trials left by an interruption."""
    repeats = sum(REPEATED in trial.user_attrs for trial in proposed_trials(study))
    if repeats:
        _print(
            console,
            f"{repeats} proposals repeated the values of earlier trials and were not trained again",
        )
    if left := trials_left(study, config.tune):
        _print(
            console,
            f"interrupted: {left} of {trials_wanted(config.tune)} trials left; run the same "
            "command again to resume",
        )


def _print(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
