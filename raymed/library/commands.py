"""Preparing, training, searching and evaluating, as functions.

Each loads what it needs when it is called: only `tune` needs Optuna, and `evaluate` does not need
Ray.
"""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console

from raymed import config as configuration
from raymed.config import Config
from raymed.data.sources import SOURCES, load_settings, load_source
from raymed.errors import UsageError
from raymed.library.session import session
from raymed.setting_values import GivenSettings, setting_values
from raymed.storage import GivenPath, as_path

if TYPE_CHECKING:
    from raymed.data.schema import DatasetInfo
    from raymed.library.trained_run import TrainedRun
    from raymed.scores import Evaluation
    from raymed.tuning.sweep import Sweep

GivenConfig = Config | Mapping[str, Any] | GivenPath
"""A configuration, what a YAML file of one could contain, or such a file."""


def prepare(
    source: str,
    path: str | os.PathLike[str] | None = None,
    *,
    console: Console | None = None,
    quiet: bool = False,
    **settings: Any,
) -> "DatasetInfo":
    """Prepare a dataset, as ``raymed prepare`` does.

    Args:
        source: ``iu-xray``, ``mimic-cxr``, ``peir-gross``, ``r2gen``, ``table`` or ``phantom``.
        path: The source's folder or file; ``phantom`` has none.
        console: Where to print; None: standard output.
        quiet: Print nothing.
        **settings: ``out``, the dataset's folder, and others that ``raymed prepare --help`` lists.

    Returns:
        What the dataset contains: ``counts``, ``rejected``, ``content_hash`` and more.

    Raises:
        UsageError: A setting is not valid, the source cannot be read, or ``out`` exists.
    """
    if source not in SOURCES:
        raise UsageError(f"source: must be one of {', '.join(SOURCES)}, not {source!r}")
    needed = bool(load_source(source).path)
    if needed != (path is not None):
        raise UsageError(
            f"prepare {source}: expected {'one' if needed else 'no'} path, found "
            f"{'none' if path is None else path}"
        )
    from raymed.launch.prepare import run_prepare

    with session(console, quiet) as chosen:
        given = None if path is None else os.fspath(path)
        return run_prepare(source, given, load_settings(source, settings), chosen)


def train(
    config: GivenConfig,
    settings: GivenSettings = (),
    *,
    console: Console | None = None,
    quiet: bool = False,
) -> "TrainedRun":
    """Train a run, or resume it, as ``raymed train`` does.

    On Ray unless ``launch.workers`` is 0. A Ray that the process is connected to is used, and left
    running; another one is started and shut down again.

    Args:
        config: A YAML file, a mapping such as ``{"data": {"path": "data/own"}}``, or a `Config`.
        settings: What takes precedence: ``{"training.epochs": 3}`` or ``["training.epochs=3"]``.
        console: Where to print; None: standard output.
        quiet: Print nothing.

    Raises:
        UsageError: The dataset, the folder or the cluster does not fit the configuration.
    """
    resolved = as_config(config, settings)
    from raymed.launch.run import run_training
    from raymed.library.trained_run import TrainedRun

    with session(console, quiet) as chosen:
        return TrainedRun.of(run_training(resolved, chosen))


def tune(
    config: GivenConfig,
    settings: GivenSettings = (),
    *,
    callbacks: Sequence[Any] = (),
    console: Console | None = None,
    quiet: bool = False,
) -> "Sweep":
    """Run or resume a sweep, as ``raymed tune`` does.

    Args:
        config: As for `train`, with ``tune.space``.
        settings: As for `train`.
        callbacks: Instances of `ray.tune.Callback`, such as Ray's ``MLflowLoggerCallback``.
        console: Where to print; None: standard output.
        quiet: Print nothing.

    Raises:
        UsageError: The space is empty, the folder is another sweep's or in use, a trial would not
            fit the cluster or the dataset, or no trial has reported a score.
    """
    resolved = as_config(config, settings)
    from raymed.tuning.sweep import run_sweep

    with session(console, quiet) as chosen:
        return run_sweep(resolved, chosen, callbacks)


def evaluate(
    run: GivenPath,
    split: str = "test",
    settings: GivenSettings = (),
    *,
    out: GivenPath | None = None,
    console: Console | None = None,
    quiet: bool = False,
) -> "Evaluation":
    """Score a run's best checkpoint on a split, as ``raymed evaluate`` does.

    Args:
        run: The folder of a run or of one of its checkpoints, or a URI.
        split: ``train``, ``val`` or ``test``.
        settings: ``data.path`` and ``generation`` keys.
        out: Folder for the predictions and scores; None: a folder in ``run`` called as the split.
        console: Where to print; None: standard output.
        quiet: Print nothing.

    Raises:
        UsageError: The checkpoint or the dataset cannot be opened, they do not fit, or ``out``
            contains results of another checkpoint, dataset or configuration.
    """
    from raymed.evaluation import evaluate as evaluate_checkpoint
    from raymed.predictions_file import PREDICTIONS_FILE, SCORES_FILE
    from raymed.reports.model_card import refresh_model_card
    from raymed.training.checkpoint import Checkpoint
    from raymed.verdict import verdict

    with session(console, quiet) as chosen:
        checkpoint = Checkpoint.open(as_path(run))
        allowed = ("split", "out", "data.path", "generation.")
        config = configuration.apply_settings(checkpoint.config, settings, allowed)
        folder = as_path(run) / split if out is None else as_path(out)
        found = evaluate_checkpoint(checkpoint, config, split, folder)
        say = partial(chosen.print, highlight=False, markup=False, soft_wrap=True)
        chosen.print(found.table())
        for line in found.notes():
            say(line)
        card = refresh_model_card(checkpoint, found.as_json(), say)
        for label, file in (
            ("predictions", folder / PREDICTIONS_FILE),
            ("scores", folder / SCORES_FILE),
            ("model card", card),
        ):
            if file is not None:
                say(f"{label}: {file}")
        say(verdict(found.rows))
        return found


def as_config(config: GivenConfig, settings: GivenSettings) -> Config:
    """The configuration that was given, with the settings applied.

    Raises:
        UsageError: The file cannot be read, or a key or value is not valid.
    """
    if isinstance(config, Config):
        return config.override(setting_values(settings, "settings"), "settings")
    return configuration.load(config if isinstance(config, Mapping) else as_path(config), settings)
