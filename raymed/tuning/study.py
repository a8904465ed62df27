"""The Optuna study of a sweep: its storage, its sampler, and its record of each trial.

The study is the only record of what was proposed and how it ended: the leaderboard is built from
it, a sweep is resumed from it, and Optuna's own tools can open it.
"""

import importlib
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.errors import UsageError
from raymed.metrics.table import METRICS
from raymed.run_folder import STUDY_FILE, SweepFolder
from raymed.sections import TuneConfig
from raymed.storage import AnyPath, RemotePath, as_path, atomic_write_text, is_same_folder, reason
from raymed.tuning.space import count_points, to_params

REASON = "reason"
"""User attribute of a failed trial: why it failed."""
REPEATED = "repeated"
"""User attribute of a proposal that was not trained: the earlier trial with the same values."""
CONTENT = "content_hash"
"""User attribute of a study: content hash of the dataset that its trials are trained on."""
FOLDER = "folder"
"""User attribute of a study: absolute path of its sweep's folder."""
NEEDED_PACKAGES = {"cma_es": ("cmaes",), "gp": ("scipy", "torch"), "qmc": ("scipy",)}


def objectives(config: TuneConfig) -> dict[str, str]:
    """``max`` or ``min`` for each metric that is searched for; the first one ranks the trials."""
    given = {str(k): str(v) for k, v in config.objectives.items()}
    return given or {"score": METRICS["score"].direction}


def make_study(config: Config, folder: AnyPath) -> optuna.Study:
    """Create a sweep's study and enqueue the points to evaluate first, or open the existing study.

    No other process may be writing to it.

    Raises:
        UsageError: The storage cannot be opened or has another sweep's study of this name, the
            journal is damaged, or the sampler's package is missing.
    """
    if config.tune.storage is None and isinstance(folder, Path):
        _repair(folder / STUDY_FILE)
    sampler = build_sampler(config.tune, 0)
    directions = [
        "maximize" if direction == "max" else "minimize"
        for direction in objectives(config.tune).values()
    ]
    with _opening(config, folder):
        storage = _storage(config, folder)
        if config.tune.storage is not None:
            # Checked again: another sweep may have been started at the same time.
            _refuse_foreign(storage, config.run.name, folder, resumed=True)
        study = optuna.create_study(
            study_name=config.run.name,
            storage=storage,
            sampler=sampler,
            pruner=optuna.pruners.NopPruner(),
            directions=directions,
            load_if_exists=True,
        )
        for point in config.tune.points_to_evaluate:
            study.enqueue_trial(to_params(point, config.tune.space), skip_if_exists=True)
    return study


def claim_study(
    config: Config, folder: AnyPath, dataset: PreparedDataset, report: Callable[[str], None]
) -> optuna.Study:
    """`make_study`, marked with the dataset of its trials and the folder of its sweep.

    Args:
        config: The sweep's configuration.
        folder: The sweep's folder, which the caller holds.
        dataset: The dataset that the trials are trained on.
        report: Gets a line if the sweep was moved here.

    Raises:
        UsageError: As `make_study`, or the trials so far were trained on other data.
    """
    study = make_study(config, folder)
    known = study.user_attrs.get(CONTENT)
    if known is None:
        if started_trials(study):
            raise UsageError(
                f"tune.storage: has a study {config.run.name} of unknown origin; choose another "
                "run.name"
            )
        study.set_user_attr(CONTENT, dataset.info.content_hash)
    elif known != dataset.info.content_hash:
        raise UsageError(
            f"{dataset.path}: its content is not what the trials of {folder} were trained on: "
            "set data.path to that dataset, or choose another run.name"
        )
    before = study.user_attrs.get(FOLDER, str(folder))
    if not is_same_folder(folder, as_path(before)):
        report(f"the sweep was in {before} and continues in {folder}")
    study.set_user_attr(FOLDER, str(folder.absolute()))
    return study


def refuse_foreign_study(config: Config, folder: AnyPath) -> None:
    """Check that the study of this name in the database, if there is one, belongs to this sweep.

    A study records its sweep's folder. A sweep that is moved keeps its study; if a sweep was copied
    or deleted, the study still belongs to the original folder.

    Raises:
        UsageError: It belongs to another sweep, or the database cannot be opened.
    """
    if config.tune.storage is None:
        return
    with _opening(config, folder):
        resumed = SweepFolder(folder).exists
        _refuse_foreign(_storage(config, folder), config.run.name, folder, resumed)


def _refuse_foreign(storage: BaseStorage, name: str, folder: AnyPath, resumed: bool) -> None:
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        return
    trials, other = len(started_trials(study)), study.user_attrs.get(FOLDER)
    own = other is None or is_same_folder(folder, as_path(other))
    if own and (resumed or not trials):
        return
    if not own and resumed and not SweepFolder(as_path(other)).exists:
        return
    gone = ", which no longer holds a sweep" if own and other else ""
    raise UsageError(
        f"{folder}: tune.storage already has a study {name} with {trials} trials, of the sweep in "
        f"{other or 'an unrecorded folder'}{gone}: choose another run.name or another database, or "
        f"delete that study (`optuna delete-study --study-name {name} --storage URL`)"
    )


def open_study(config: Config, folder: AnyPath) -> optuna.Study:
    """Open a sweep's study for reading, also while the sweep is running.

    Raises:
        UsageError: There is none, or it cannot be read.
    """
    if config.tune.storage is None and not (folder / STUDY_FILE).is_file():
        raise UsageError(f"{folder}: holds no sweep: it has no {STUDY_FILE}")
    with _opening(config, folder):
        return optuna.load_study(study_name=config.run.name, storage=_storage(config, folder))


def build_sampler(config: TuneConfig, number: int) -> BaseSampler:
    """The configured sampler, seeded for the trial with the given number.

    Each trial has a seed of its own, so its proposal depends on ``tune.seed``, its number and the
    study's contents at the time, but not on how often the sweep was interrupted.

    Raises:
        UsageError: A package that the sampler needs is not installed.
    """
    for package in NEEDED_PACKAGES.get(config.sampler, ()):
        try:
            importlib.import_module(package)
        except ImportError:
            raise UsageError(
                f"tune.sampler: {config.sampler} needs the package {package}: install it, or "
                "choose another sampler"
            ) from None
    seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
    startup = config.startup_trials
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if config.sampler == "tpe":
            # Grouped, so that conditional keys are modelled jointly with the others; with the liar,
            # trials proposed at the same time differ.
            return optuna.samplers.TPESampler(
                seed=seed,
                n_startup_trials=startup,
                multivariate=True,
                group=True,
                constant_liar=True,
            )
        if config.sampler == "cma_es":
            return optuna.samplers.CmaEsSampler(
                seed=seed, n_startup_trials=startup, warn_independent_sampling=False
            )
        if config.sampler == "gp":
            return optuna.samplers.GPSampler(
                seed=seed, n_startup_trials=startup, warn_independent_sampling=False
            )
        if config.sampler == "qmc":
            # A single sequence; the study records how much of it has been used.
            return optuna.samplers.QMCSampler(
                seed=config.seed,
                scramble=True,
                independent_sampler=optuna.samplers.RandomSampler(seed=seed),
                warn_independent_sampling=False,
            )
        return optuna.samplers.RandomSampler(seed=seed)


def proposed_trials(study: optuna.Study) -> list[FrozenTrial]:
    """All trials proposed so far, by number; enqueued points that are waiting are not included."""
    return [t for t in study.get_trials(deepcopy=False) if t.state != TrialState.WAITING]


def started_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials of the sweep so far, by number: those proposed, without repeated values."""
    return [trial for trial in proposed_trials(study) if REPEATED not in trial.user_attrs]


def trials_wanted(config: TuneConfig) -> int:
    """Number of trials in the finished sweep: no two of them have the same values."""
    return count_points(config.space, config.trials)


def trials_left(study: optuna.Study, config: TuneConfig) -> int:
    """Number of trials that have not ended, including those not proposed yet."""
    done = sum(trial.state.is_finished() for trial in started_trials(study))
    return max(trials_wanted(config) - done, 0)


def reopen_trial(study: optuna.Study, number: int) -> optuna.Trial:
    """A running trial of an earlier start, to be asked for its values and reported to.

    `optuna.Trial` takes the storage's id of a trial, for which Optuna has no public accessor; it
    has no other way to continue a trial either.
    """
    return optuna.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)


def _storage(config: Config, folder: AnyPath) -> BaseStorage:
    if config.tune.storage is not None:
        return RDBStorage(config.tune.storage)
    if isinstance(folder, RemotePath):
        return JournalStorage(_RemoteJournal(folder / STUDY_FILE))
    return JournalStorage(JournalFileBackend(str(folder / STUDY_FILE)))


class _RemoteJournal(BaseJournalBackend):
    """A journal in an object store, where files cannot be appended to: each entry rewrites it.

    The sweep's folder is locked, so there is a single writer and its copy in memory is current. The
    format is that of `JournalFileBackend`: one line per entry.

    Args:
        file: The journal's file.
    """

    def __init__(self, file: RemotePath) -> None:
        self.file = file
        try:
            self.text = file.read_text()
        except FileNotFoundError:
            self.text = ""
        self.logs: list[dict[str, Any]] = [json.loads(line) for line in self.text.splitlines()]

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        return self.logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.logs += logs
        # Only new entries are serialized: in the course of a sweep there are thousands.
        self.text += "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        try:
            atomic_write_text(self.file, self.text)
        except OSError as error:
            raise UsageError(
                f"{self.file}: cannot be written ({reason(error)}); once it can be, run the same "
                "command again to resume"
            ) from error


@contextmanager
def _opening(config: Config, folder: AnyPath) -> Iterator[None]:
    try:
        yield
    except UsageError:
        raise
    # Database drivers and the journal's reader each raise errors of their own.
    except Exception as error:
        where = config.tune.storage or folder / STUDY_FILE
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"{where}: Optuna's study {config.run.name} cannot be opened ({reason}); see "
            "tune.storage"
        ) from error


def _repair(journal: Path) -> None:
    """Remove what a killed process left behind: half a line, and Optuna's lock on the journal."""
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    if journal.exists() and not (content := journal.read_bytes()).endswith(b"\n"):
        with journal.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
