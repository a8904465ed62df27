"""The folders that raymed trains in: what belongs there, who may write, what a resume may change.

    RUN/      config.yaml, metrics.csv, checkpoints/, tensorboard/, scored/,
              MODEL_CARD.md
    SWEEP/    sweep.yaml, optuna.journal, leaderboard.parquet, confirmed.parquet, best.yaml,
              trials/TRIAL/ (a run each), fine-tuned/TRIAL/ (a run each),
              confirm/TRIAL-seed-N/ and confirm/own-seed-N/ (a run each)
    TABLE/    table-N.md, table-N-runs.parquet, runs/SYSTEM-seed-N/ (a run each)

Each is ``run.folder/run.name`` of its configuration. One command at a time works on it, and the
same command given again resumes what it finds there.
"""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import ClassVar, Self

from raymed import config as configuration
from raymed.config import Config, keys_that_decide
from raymed.data.dataset import PreparedDataset
from raymed.errors import UsageError
from raymed.keys import Decides
from raymed.locks import LOCK_FILE, folder_lock
from raymed.storage import AnyPath, as_path, atomic_write_text, reason
from raymed.training.checkpoint import Checkpoint, latest
from raymed.training.log import METRICS_FILE, read_metrics
from raymed.training.observer import Row

CONFIG_FILE = "config.yaml"
SWEEP_FILE = "sweep.yaml"
STUDY_FILE = "optuna.journal"
TRIALS = "trials"
FINE_TUNED = "fine-tuned"
CONFIRM = "confirm"
RUNS = "runs"
SCORED = "scored"

RESULT = (Decides.RUN, Decides.SCORE)
"""What a run's result depends on: such keys must not change when it is resumed."""


@dataclass(frozen=True)
class OutputFolder:
    """A folder of one kind.

    Attributes:
        path: Where it lies; it need not exist yet.
    """

    path: AnyPath
    kind: ClassVar[str]
    """The kind in words, for messages."""
    marker: ClassVar[str]
    """The file or folder by which a folder of the kind is recognised."""

    @classmethod
    def of(cls, config: Config) -> Self:
        """The folder that a configuration names."""
        return cls(as_path(config.run.folder) / config.run.name)

    @property
    def exists(self) -> bool:
        """Whether the path holds a folder of this kind."""
        return (self.path / self.marker).exists()

    def lock(self) -> AbstractContextManager[None]:
        """Hold the folder against other processes inside the block.

        Raises:
            UsageError: Another process holds it, or it cannot be written.
        """
        return folder_lock(self.path)

    def refuse_foreign(self) -> None:
        """See that nothing else lies at the path.

        Raises:
            UsageError: Something does.
        """
        if _is_occupied(self.path) and not self.exists:
            raise UsageError(
                f"{self.path}: exists but is not a {self.kind} folder; choose another run.name"
            )


@dataclass(frozen=True)
class ConfiguredFolder(OutputFolder):
    """A folder that keeps the configuration with which it was last started, in its marker."""

    fixed: ClassVar[Sequence[Decides]]
    """What must not change once the folder is in use: the keys that these depend on."""

    @contextmanager
    def open(self, config: Config) -> Iterator[None]:
        """Hold the folder inside the block, made or resumed with this configuration.

        Raises:
            UsageError: Another process holds the folder; it has other content, or was started with
                a different configuration; or it cannot be written.
        """
        self.refuse_foreign()
        with self.lock():
            self.initialise(config)
            yield

    def initialise(self, config: Config) -> None:
        """Store the configuration. Whoever calls this holds the folder, or the one above it.

        Raises:
            UsageError: As `refuse_changed`, or the folder cannot be written.
        """
        self.refuse_changed(config)
        try:
            atomic_write_text(self.path / self.marker, config.to_yaml())
        except OSError as error:
            raise UsageError(f"{self.path}: cannot be written ({reason(error)})") from error

    def config(self, overrides: Sequence[str] = ()) -> Config:
        """The stored configuration with ``key=value`` texts applied.

        Raises:
            UsageError: There is none, or it is not valid.
        """
        return configuration.load(self.path / self.marker, overrides)

    def refuse_changed(self, config: Config) -> None:
        """See that the folder is free, or was started with an equivalent configuration.

        Raises:
            UsageError: It has other content, or a key that must not change has changed.
        """
        if not self.exists:
            self.refuse_foreign()
            return
        before = self.config()
        changed = changed_keys(before, config, self.fixed)
        if changed and self._has_results():
            raise UsageError(
                f"{self.path}: holds a {self.kind} with a different configuration "
                f"({'; '.join(changed)}). {self._advice(before, config)}"
            )

    def _has_results(self) -> bool:
        """Whether there is something that another configuration would spoil."""
        return True

    def _advice(self, before: Config, now: Config) -> str:  # noqa: ARG002
        """What to do about a different configuration."""
        return "Choose another run.name, or delete that folder"


class RunFolder(ConfiguredFolder):
    """The folder of one training run."""

    kind = "run"
    marker = CONFIG_FILE
    fixed = RESULT

    @property
    def scored(self) -> AnyPath:
        """The folder of the scores that a table computes; `raymed evaluate` writes elsewhere."""
        return self.path / SCORED

    def history(self) -> list[Row]:
        """The metrics of each epoch so far."""
        return read_metrics(self.path / METRICS_FILE)

    def best_checkpoint(self) -> Checkpoint:
        """The checkpoint of the best epoch.

        Raises:
            UsageError: There is no checkpoint, or it is damaged.
        """
        return Checkpoint.open(self.path)

    def last_checkpoint(self) -> Checkpoint | None:
        """The checkpoint that the run would be resumed from, if it has one.

        Raises:
            UsageError: It is damaged.
        """
        last = latest(self.path)
        return Checkpoint.open(last) if last is not None else None

    def resumed_from(self, dataset: PreparedDataset) -> Checkpoint | None:
        """The last checkpoint, if there is one, once it is known to fit the dataset.

        Raises:
            UsageError: It was trained on other data, in which words and tags have other numbers.
        """
        last = self.last_checkpoint()
        if last is not None and last.content_hash != dataset.info.content_hash:
            raise UsageError(
                f"{dataset.path}: its content is not what {self.path} was trained on: set "
                "data.path to that dataset, or choose another run.name"
            )
        return last

    def _has_results(self) -> bool:
        # A run that has not finished an epoch may start over with another configuration.
        return latest(self.path) is not None

    def _advice(self, before: Config, now: Config) -> str:
        more = now.training.epochs - before.training.epochs
        if more <= 0 or len(changed_keys(before, now, self.fixed)) > 1:
            return super()._advice(before, now)
        # The learning rate depends on the number of epochs, and has decayed by the last one.
        name = shlex.quote(f"run.name={self.path.name}-{now.training.epochs}")
        start = shlex.quote(f"training.start_from={self.path}")
        return (
            "A run keeps the number of epochs that it was started with. To continue from its best "
            f"weights, as a new run of {more} epochs:\n"
            f"  raymed train {shlex.quote(str(self.path / CONFIG_FILE))} {start} {name} "
            f"training.epochs={more}"
        )


class SweepFolder(ConfiguredFolder):
    """The folder of a sweep."""

    kind = "sweep"
    marker = SWEEP_FILE
    fixed = (*RESULT, Decides.SEARCH)

    def config(self, overrides: Sequence[str] = ()) -> Config:
        """The stored configuration with ``key=value`` texts applied.

        Raises:
            UsageError: This is not a sweep's folder, or the configuration is not valid.
        """
        if not self.exists:
            raise UsageError(
                f"{self.path}: is not a sweep folder: it has no {SWEEP_FILE}; give a folder that "
                "`raymed tune` made"
            )
        return super().config(overrides)

    def trial(self, name: str) -> RunFolder:
        """The run of a trial."""
        return RunFolder(self.path / TRIALS / name)

    @property
    def fine_tuned(self) -> AnyPath:
        """The folder of the fine-tuning runs, which have the names of their trials."""
        return self.path / FINE_TUNED

    def confirming(self, settings: str, seed: int) -> RunFolder:
        """The run that confirms a trial's settings, or the file's own, with a seed."""
        return RunFolder(self.path / CONFIRM / f"{settings}-seed-{seed}")


class TableFolder(OutputFolder):
    """The folder of one or more tables that share their runs."""

    kind = "table"
    marker = RUNS

    @property
    def runs(self) -> AnyPath:
        """The folder of the runs."""
        return self.path / RUNS


def changed_keys(before: Config, now: Config, kinds: Sequence[Decides]) -> list[str]:
    """What differs between two configurations, as ``key: old -> new``.

    Args:
        before: The earlier configuration.
        now: The later one.
        kinds: Only keys that decide one of these are compared.
    """
    trees = [config.model_dump(mode="json", by_alias=True) for config in (before, now)]
    changed = []
    for key in keys_that_decide(*kinds):
        section, _, name = key.partition(".")
        old, new = (tree[section][name] for tree in trees)
        if old != new:
            changed.append(f"{key}: {old!r} -> {new!r}")
    return changed


def _is_occupied(folder: AnyPath) -> bool:
    """Whether anything but a lock file lies there."""
    if folder.is_dir():
        return any(child.name != LOCK_FILE for child in folder.iterdir())
    return folder.exists()
