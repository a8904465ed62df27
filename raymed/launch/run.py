"""A run's folder, and following a run on the console while Ray trains it."""

import shlex
import signal
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from raymed import config as configuration
from raymed.config import Config, keys_that_decide, with_absolute_paths
from raymed.data.dataset import PreparedDataset
from raymed.errors import UsageError
from raymed.keys import Decides
from raymed.launch.cluster import connected, quiet
from raymed.launch.printer import Printer
from raymed.launch.termination import Terminated, note_from_now, note_sigterm, noted, noting
from raymed.locks import LOCK_FILE, folder_lock
from raymed.storage import AnyPath, as_path, atomic_write_text, reason
from raymed.training.checkpoint import Checkpoint, latest
from raymed.training.loop import train
from raymed.training.observer import Status
from raymed.training.saving import TrainingEnded
from raymed.training.setup import check
from raymed.training.worker import Worker, local_device

CONFIG_FILE = "config.yaml"
RESULT = (Decides.RUN, Decides.SCORE)
"""What decides a run's result: keys that may not differ when it is taken up again."""


def run_training(config: Config, console: Console) -> Checkpoint:
    """Train a run, or take it up where it stopped; its best checkpoint.

    Raises:
        UsageError: the dataset, the folder or the cluster does not fit the configuration.
        Terminated: SIGTERM came; a checkpoint was written if there was anything to be kept.
    """
    config = located(config)
    dataset = check(config)
    folder = run_folder(config)
    _refuse_foreign(folder)
    with folder_lock(folder):
        claim(config)
        last = last_checkpoint(folder, dataset)
        if last and last.epoch >= config.training.epochs:
            _say(console, f"{folder}: already trained for {last.epoch} epochs; nothing to do")
            return Checkpoint.open(folder)
        if last:
            step = f", step {last.partial.step}" if last.partial else ""
            _say(console, f"{folder}: going on after epoch {last.epoch}{step}")
        try:
            if config.launch.workers == 0:
                _train_here(config, folder, console)
            else:
                with connected(config.launch.address):
                    _train_on_ray(config, folder, console)
        except TrainingEnded:
            raise Terminated from None
    return Checkpoint.open(folder)


def run_folder(config: Config) -> AnyPath:
    """The folder of a run, sweep or table."""
    return as_path(config.run.folder) / config.run.name


def located(config: Config) -> Config:
    """The configuration with absolute paths: Ray's workers have another working directory.

    Paths are also where a sweep is to search one, and among the settings of a table's systems.
    """
    tree = config.model_dump(mode="json", by_alias=True)
    plain = {f"{section}.{key}": v for section, keys in tree.items() for key, v in keys.items()}
    for key, dimension in plain["tune.space"].items():
        dimension["choice"] = dimension["choice"] and _all_absolute(key, dimension["choice"])
        dimension["when"] = {k: _all_absolute(k, values) for k, values in dimension["when"].items()}
    points = plain["tune.points_to_evaluate"]
    plain["tune.points_to_evaluate"] = [with_absolute_paths(point) for point in points]
    systems = plain["table.systems"]
    plain["table.systems"] = {name: with_absolute_paths(keys) for name, keys in systems.items()}
    return config.override(with_absolute_paths(plain))


def _all_absolute(key: str, values: Sequence[Any]) -> list[Any]:
    return [with_absolute_paths({key: value})[key] for value in values]


def claim(config: Config) -> AnyPath:
    """The run's folder, with its configuration written, or found there and equal.

    A run that has not finished an epoch may be started anew with another configuration.

    Raises:
        UsageError: the folder holds a run of another configuration, or something else.
    """
    folder = run_folder(config)
    file = folder / CONFIG_FILE
    if file.is_file():
        changed = changed_keys(configuration.load(file), config, RESULT)
        if changed and latest(folder) is not None:
            raise UsageError(
                f"{folder}: holds a run of another configuration ({'; '.join(changed)}). "
                f"{_advice(folder, configuration.load(file), config)}"
            )
    else:
        _refuse_foreign(folder)
    try:
        atomic_write_text(file, config.to_yaml())
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({reason(error)})") from error
    return folder


def _advice(folder: AnyPath, before: Config, now: Config) -> str:
    """What to do where a folder holds a run of another configuration."""
    more = now.training.epochs - before.training.epochs
    if more <= 0 or len(changed_keys(before, now, RESULT)) > 1:
        return "Choose another run.name, or delete that folder"
    # Its learning rate has come down by its last epoch, and follows from how many there are.
    name = shlex.quote(f"run.name={folder.name}-{now.training.epochs}")
    start = shlex.quote(f"training.start_from={folder}")
    return (
        "A run has the epochs that it was begun with. To train on from its best weights, as a run "
        f"of its own with {more} epochs:\n"
        f"  raymed train {shlex.quote(str(folder / CONFIG_FILE))} {start} {name} "
        f"training.epochs={more}"
    )


def _refuse_foreign(folder: AnyPath) -> None:
    if taken(folder) and not (folder / CONFIG_FILE).is_file():
        raise UsageError(f"{folder}: exists and is no run; choose another run.name")


def require_worker_groups(config: Config, what: str) -> None:
    """See that there will be workers that stay up, and so many all the time.

    Raises:
        UsageError: naming the key.
    """
    if config.launch.workers == 0:
        raise UsageError(
            "launch.workers: 0 trains in the calling process, which is for a single run; a "
            f"{what}'s runs are Ray Train runs, so set it to 1 or more"
        )
    if not isinstance(config.launch.workers, int):
        raise UsageError(
            f"launch.workers: {list(config.launch.workers)} lets the number change, which is for a "
            f"single run; the groups that train a {what}'s runs have a fixed one: set it to one "
            f"number, such as {config.launch.workers[0]}"
        )


def changed_keys(before: Config, now: Config, kinds: Sequence[Decides]) -> list[str]:
    """Keys that decide such things and differ between two configurations: ``key: old -> new``."""
    trees = [config.model_dump(mode="json", by_alias=True) for config in (before, now)]
    changed = []
    for key in keys_that_decide(*kinds):
        section, _, name = key.partition(".")
        old, new = (tree[section][name] for tree in trees)
        if old != new:
            changed.append(f"{key}: {old!r} -> {new!r}")
    return changed


def taken(folder: AnyPath) -> bool:
    """Whether something that must not be mixed with a run lies there."""
    if folder.is_dir():
        return any(child.name != LOCK_FILE for child in folder.iterdir())
    return folder.exists()


def last_checkpoint(folder: AnyPath, dataset: PreparedDataset) -> Checkpoint | None:
    """A run's last checkpoint, if it has one.

    Raises:
        UsageError: it was trained on other data; its words and tags have other numbers.
    """
    last = latest(folder)
    if last is None:
        return None
    checkpoint = Checkpoint.open(last)
    if checkpoint.content_hash != dataset.info.content_hash:
        raise UsageError(
            f"{dataset.path}: its content is not what {folder} was trained on: give data.path of "
            "that dataset, or choose another run.name"
        )
    return checkpoint


def _train_here(config: Config, folder: AnyPath, console: Console) -> None:
    """Train in this process and thread, as a debugger wants it: no Ray, no live bar, no thread."""
    quiet()
    printer = _Deferring(config, console)
    before = signal.getsignal(signal.SIGTERM)
    note_sigterm()
    try:
        with noting(at_once=False):
            train(config, folder, Worker(local_device()), printer)
    finally:
        signal.signal(signal.SIGTERM, before)


class _Deferring(Printer):
    """SIGTERM waits for a checkpoint once a step is done; before, nothing would be lost."""

    def progress(self, status: Status) -> None:
        if status.epoch:
            note_from_now()
        super().progress(status)


def _train_on_ray(config: Config, folder: AnyPath, console: Console) -> None:
    # Ray Train imports torch's distributed parts: seconds that a mere check does not need.
    from raymed.launch.following import following
    from raymed.launch.trainer import check_room, describe_workers, fit
    from raymed.launch.watch import start_watch

    check_room(config)
    _say(console, describe_workers(config))
    watch = start_watch()
    try:
        with following(watch, config, console):
            fit(config, folder, watch)
    except KeyboardInterrupt:
        if not noted():
            raise
    if noted():
        raise TrainingEnded


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
