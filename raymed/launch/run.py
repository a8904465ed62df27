"""A run's folder, and following a run on the console while Ray trains it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from raymed import config as configuration
from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.errors import UsageError
from raymed.launch.cluster import connected, quiet
from raymed.launch.lock import LOCK_FILE, alone
from raymed.training.checkpoint import Checkpoint, Row, latest
from raymed.training.log import METRICS_FILE, PROGRESS_FILE, read_metrics, replace
from raymed.training.loop import check

CONFIG_FILE = "config.yaml"
FREE_TO_CHANGE = ("run.", "launch.", "tune.", "table.", "data.path")
"""Keys that may differ when a run is taken up again: they do not decide its result."""


def run_training(config: Config, console: Console) -> Checkpoint:
    """Train a run, or take it up where it stopped; its best checkpoint.

    Raises:
        UsageError: the data set, the folder or the cluster does not fit the configuration.
    """
    config = located(config)
    dataset = check(config)
    folder = Path(config.run.folder) / config.run.name
    _refuse_foreign(folder)
    with alone(folder):
        claim(config)
        done = epochs_done(folder, dataset)
        if done >= config.training.epochs:
            _say(console, f"{folder}: already trained for {done} epochs; nothing to do")
            return Checkpoint.open(folder)
        if done:
            _say(console, f"{folder}: going on after epoch {done}")
        with following(folder, config, console):
            if config.launch.workers == 0:
                quiet()
                _fit(config, folder)
            else:
                with connected(config.launch.address):
                    _fit(config, folder)
    return Checkpoint.open(folder)


def located(config: Config) -> Config:
    """The configuration with absolute paths: Ray's workers have another working directory."""
    paths = {"run.folder": config.run.folder}
    if "://" not in config.data.path:
        paths["data.path"] = config.data.path
    if config.model.encoder_weights not in ("imagenet", "none"):
        paths["model.encoder_weights"] = config.model.encoder_weights
    if config.training.start_from is not None:
        paths["training.start_from"] = config.training.start_from
    return config.override({key: str(Path(path).absolute()) for key, path in paths.items()})


def claim(config: Config) -> Path:
    """The run's folder, with its configuration written, or found there and equal.

    A run that has not finished an epoch may be started anew with another configuration.

    Raises:
        UsageError: the folder holds a run of another configuration, or something else.
    """
    folder = Path(config.run.folder) / config.run.name
    file = folder / CONFIG_FILE
    if file.is_file():
        changed = changed_keys(configuration.load(file), config, FREE_TO_CHANGE)
        if changed and latest(folder) is not None:
            raise UsageError(
                f"{folder}: holds a run of another configuration ({'; '.join(changed)}). Choose "
                "another run.name, or delete that folder"
            )
    else:
        _refuse_foreign(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace(file, config.to_yaml())
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror})") from error
    return folder


def _refuse_foreign(folder: Path) -> None:
    if taken(folder) and not (folder / CONFIG_FILE).is_file():
        raise UsageError(f"{folder}: exists and is no run; choose another run.name")


def changed_keys(before: Config, now: Config, free: tuple[str, ...]) -> list[str]:
    """What differs between two configurations, ``key: old -> new``, but for the free keys."""
    trees = [config.model_dump(mode="json", by_alias=True) for config in (before, now)]
    changed = []
    for key in configuration.dotted_keys():
        section, _, name = key.partition(".")
        old, new = (tree[section][name] for tree in trees)
        if old != new and not key.startswith(free):
            changed.append(f"{key}: {old!r} -> {new!r}")
    return changed


def taken(folder: Path) -> bool:
    """Whether something that must not be mixed with a run lies there."""
    if folder.is_dir():
        return any(child.name != LOCK_FILE for child in folder.iterdir())
    return folder.exists()


def epochs_done(folder: Path, dataset: PreparedDataset) -> int:
    """Epochs of a run that its last checkpoint holds.

    Raises:
        UsageError: it was trained on other data; its words and tags have other numbers.
    """
    last = latest(folder)
    if last is None:
        return 0
    checkpoint = Checkpoint.open(last)
    if checkpoint.content_hash != dataset.info.content_hash:
        raise UsageError(
            f"{dataset.path}: its content is not what {folder} was trained on: give data.path of "
            "that data set, or choose another run.name"
        )
    return checkpoint.epoch


@contextmanager
def following(folder: Path, config: Config, console: Console) -> Iterator[None]:
    """Print a line for each epoch of a run as it ends, and a bar while it lasts on a terminal."""
    # A live bar would paint over a debugger's prompt, and workers=0 is there for debugging.
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal or config.launch.workers == 0,
    )
    ended = Event()
    seen = len(read_metrics(folder / METRICS_FILE))

    def follow() -> None:
        nonlocal seen
        task = bar.add_task("starting the workers", total=config.training.epochs)
        last = computing = False
        while not last:
            last = ended.wait(0.5)
            rows = read_metrics(folder / METRICS_FILE)
            for row in rows[seen:]:
                console.print(
                    epoch_line(row, config.training.epochs), highlight=False, soft_wrap=True
                )
            seen = max(seen, len(rows))
            state = _progress(folder)
            if state and "features" in state:
                if not computing:
                    computing = True
                    _say(
                        console,
                        f"computing the frozen encoder's features of {state['images']} images",
                    )
                bar.update(task, description=f"{state['features']} of {state['images']} images")
            elif state:
                done = state["epoch"] - 1 + state["step"] / state["steps"]
                note = f"epoch {state['epoch']:.0f}, loss {state['loss']:.2f}"
                bar.update(task, completed=done, description=note)

    (folder / PROGRESS_FILE).unlink(missing_ok=True)
    thread = Thread(target=follow, daemon=True)
    with bar:
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def epoch_line(row: Row, epochs: int) -> str:
    """One epoch's metrics on one line."""
    scores = f"recall@5 {row['recall_5']:.3f}"
    if "cider" in row:
        scores = f"CIDEr {row['cider']:.3f}, {scores}, {row['distinct']:.0f} distinct"
    return (
        f"epoch {row['epoch']:.0f}/{epochs}  loss {row['loss']:.2f} (tag {row['loss_tag']:.2f}, "
        f"sent {row['loss_sent']:.2f}, word {row['loss_word']:.2f}, "
        f"attention {row['loss_attention']:.2f})  val {scores}  "
        f"{row['images_per_second']:.0f} images/s"
    )


def _fit(config: Config, folder: Path) -> None:
    # Ray Train imports torch's distributed parts: seconds that a mere check does not need.
    from raymed.launch.trainer import check_room, fit

    check_room(config)
    fit(config, folder)


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _progress(folder: Path) -> dict[str, float] | None:
    try:
        state: dict[str, float] = json.loads((folder / PROGRESS_FILE).read_text())
    except FileNotFoundError:
        return None
    return state
