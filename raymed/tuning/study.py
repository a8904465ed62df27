"""The Optuna study of a sweep: its storage, its sampler, and what it knows of each trial.

The study is the one record of what was proposed and how it ended: the leaderboard is made of it,
a sweep is taken up from it, and Optuna's own tools open it.
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
from raymed.run_folder import STUDY_FILE, SweepFolder
from raymed.sections import TuneConfig
from raymed.storage import AnyPath, RemotePath, as_path, atomic_write_text, is_same_folder, reason
from raymed.tuning.space import as_parameters

REASON = "reason"
"""User attribute of a failed trial."""
REPEATED = "repeated"
"""User attribute of a proposal that was not trained: the trial that had its values before."""
CONTENT = "content_hash"
"""User attribute of a study: of the prepared dataset that its trials are trained on."""
FOLDER = "folder"
"""User attribute of a study: the absolute folder of its sweep."""
NEEDS = {"cma_es": ("cmaes",), "gp": ("scipy", "torch"), "qmc": ("scipy",)}


def objectives(config: TuneConfig) -> dict[str, str]:
    """What is searched for and in which direction, ``max`` or ``min``; the first comes first."""
    return {str(k): str(v) for k, v in config.objectives.items()} or {"score": "max"}


def make_study(config: Config, folder: AnyPath) -> optuna.Study:
    """Make a sweep's study with the points that come first, or go on with the one that is there.

    Nobody else may be writing to it.

    Raises:
        UsageError: the storage cannot be opened, or has another sweep's study of this name; the
            journal is damaged; or the sampler's package is missing.
    """
    if config.tune.storage is None and isinstance(folder, Path):
        _mend(folder / STUDY_FILE)
    sampler = build_sampler(config.tune, 0)
    directions = [
        "maximize" if direction == "max" else "minimize"
        for direction in objectives(config.tune).values()
    ]
    with _opening(config, folder):
        storage = _storage(config, folder)
        if config.tune.storage is not None:
            # Once more: another sweep may have been started at the same time.
            _refuse(storage, config.run.name, folder, resumed=True)
        study = optuna.create_study(
            study_name=config.run.name,
            storage=storage,
            sampler=sampler,
            pruner=optuna.pruners.NopPruner(),
            directions=directions,
            load_if_exists=True,
        )
        for point in config.tune.points_to_evaluate:
            study.enqueue_trial(as_parameters(point, config.tune.space), skip_if_exists=True)
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
        if begun(study):
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


def refuse_anothers(config: Config, folder: AnyPath) -> None:
    """See that the study of this name in the database, if there is one, is this sweep's.

    A study remembers its sweep's folder. A sweep that was moved takes its study along; of one that
    was copied or deleted, the study stays with the first folder.

    Raises:
        UsageError: it is another sweep's, or the database cannot be opened.
    """
    if config.tune.storage is None:
        return
    with _opening(config, folder):
        _refuse(_storage(config, folder), config.run.name, folder, SweepFolder(folder).exists)


def _refuse(storage: BaseStorage, name: str, folder: AnyPath, resumed: bool) -> None:
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        return
    trials, other = len(begun(study)), study.user_attrs.get(FOLDER)
    own = other is None or is_same_folder(folder, as_path(other))
    if own and (resumed or not trials):
        return
    if not own and resumed and not SweepFolder(as_path(other)).exists:
        return
    gone = ", where no sweep lies any more" if own and other else ""
    raise UsageError(
        f"{folder}: tune.storage has a study {name} already, with {trials} trials, of the sweep "
        f"in {other or 'a folder that it does not name'}{gone}: choose another run.name or another "
        f"database, or delete that study (`optuna delete-study --study-name {name} --storage URL`)"
    )


def open_study(config: Config, folder: AnyPath) -> optuna.Study:
    """Open a sweep's study to read it, which may be done at any time.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    if config.tune.storage is None and not (folder / STUDY_FILE).is_file():
        raise UsageError(f"{folder}: holds no sweep: it has no {STUDY_FILE}")
    with _opening(config, folder):
        return optuna.load_study(study_name=config.run.name, storage=_storage(config, folder))


def build_sampler(config: TuneConfig, number: int) -> BaseSampler:
    """Optuna's sampler of that name for the trial of that number.

    Each trial has random numbers of its own, so what is proposed for it depends on the seed, its
    number and what the study was told by then, and not on how often the sweep was interrupted.

    Raises:
        UsageError: a package that it needs is not installed.
    """
    for package in NEEDS.get(config.sampler, ()):
        try:
            importlib.import_module(package)
        except ImportError:
            raise UsageError(
                f"tune.sampler: {config.sampler} needs the package {package}: install it, or take "
                "another sampler"
            ) from None
    seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
    startup = config.startup_trials
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if config.sampler == "tpe":
            # Grouped, so that keys searched under a condition are modelled together with the rest;
            # with the liar, groups that propose at the same time do not propose the same.
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
            # One sequence, of which the study remembers how far it was used.
            return optuna.samplers.QMCSampler(
                seed=config.seed,
                scramble=True,
                independent_sampler=optuna.samplers.RandomSampler(seed=seed),
                warn_independent_sampling=False,
            )
        return optuna.samplers.RandomSampler(seed=seed)


def begun(study: optuna.Study) -> list[FrozenTrial]:
    """The trials of the sweep so far, by number: neither points that wait their turn, nor proposals
    that had an earlier trial's values."""
    return [trial for trial in asked(study) if REPEATED not in trial.user_attrs]


def asked(study: optuna.Study) -> list[FrozenTrial]:
    """All that the sampler was asked for, by number."""
    return [t for t in study.get_trials(deepcopy=False) if t.state != TrialState.WAITING]


def _storage(config: Config, folder: AnyPath) -> BaseStorage:
    if config.tune.storage is not None:
        return RDBStorage(config.tune.storage)
    if isinstance(folder, RemotePath):
        return JournalStorage(_RemoteJournal(folder / STUDY_FILE))
    return JournalStorage(JournalFileBackend(str(folder / STUDY_FILE)))


class _RemoteJournal(BaseJournalBackend):
    """A journal in an object store, where files cannot grow: it is written anew for every entry.

    There is one writer, since the sweep's folder is locked; so what it knows is what is there.
    The format is that of `JournalFileBackend`, a line to an entry.

    Args:
        file: of the journal.
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
        # Only what is new is put into JSON: with the trials their entries grow to be thousands.
        self.text += "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        try:
            atomic_write_text(self.file, self.text)
        except OSError as error:
            raise UsageError(
                f"{self.file}: cannot be written ({reason(error)}); once it can be, the same "
                "command goes on"
            ) from error


@contextmanager
def _opening(config: Config, folder: AnyPath) -> Iterator[None]:
    try:
        yield
    except UsageError:
        raise
    # Database drivers and the journal's reader each raise their own.
    except Exception as error:
        where = config.tune.storage or folder / STUDY_FILE
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"{where}: Optuna's study {config.run.name} cannot be opened ({reason}); see "
            "tune.storage"
        ) from error


def _mend(journal: Path) -> None:
    """Drop what a killed process left: half of a last line, and Optuna's lock on the journal."""
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    if journal.exists() and not (content := journal.read_bytes()).endswith(b"\n"):
        with journal.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
