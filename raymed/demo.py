"""The whole pipeline on phantom studies: what `make demo` runs."""

import os
import shutil
import sys
import time
from pathlib import Path

from rich.console import Console

from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.data.prepare import prepare_source
from raymed.data.sources.phantom import PhantomSettings
from raymed.errors import UsageError
from raymed.evaluation import evaluate
from raymed.launch.cluster import connected
from raymed.launch.run import run_training
from raymed.prediction import predict_rows, print_prediction
from raymed.predictions_file import PREDICTIONS_FILE
from raymed.storage import AnyPath
from raymed.training.checkpoint import Checkpoint
from raymed.tuning.page import write_report
from raymed.tuning.sweep import Sweep, run_sweep
from raymed.verdict import verdict

STUDIES = 1000
IMAGE_SIZE = 64
SHOWN = 3
MARK = ".raymed-demo"


def run_demo(config: Config, console: Console) -> None:
    """Prepare, train on two workers, sweep, confirm, score the best run, show a few reports.

    Args:
        config: A sweep's configuration. Its run.folder is the demo's own and is emptied first.
        console: Where to print.

    Raises:
        UsageError: The folder holds something that is not a demo.
    """
    began = time.monotonic()
    folder = Path(config.run.folder)
    _empty(folder)

    console.rule("1  prepare: draw phantom studies with known findings")
    settings = PhantomSettings(out=config.data.path, image_size=IMAGE_SIZE, studies=STUDIES)
    prepare_source("phantom", None, settings, console)

    with connected(config.launch.address):
        console.rule("2  train: co_attention on two Ray Train workers")
        run_training(config.override({"run.name": "train", "launch.workers": 2}), console)
        console.rule("3  tune: Ray Tune and Optuna over six parameters, then the best over seeds")
        sweep = run_sweep(config, console)
    page = folder / config.run.name / "report.html"
    write_report(sweep.folder, page)

    console.rule("4  evaluate: a run with the best settings on held-out test studies")
    checkpoint = Checkpoint.open(sweep.best)
    _evaluate(checkpoint, folder / "test", console)

    console.rule("5  predict: reports and attention for a few test images")
    test = PreparedDataset.open(config.data.path).split("test")
    shown = [row for row in range(len(test)) if test.findings[row]][:SHOWN]
    for prediction in predict_rows(checkpoint, checkpoint.config, test, shown, folder / "figures"):
        print_prediction(prediction, console)

    console.rule(f"done in {time.monotonic() - began:.0f} s")
    _print_results(config, sweep, page, console)


def _evaluate(checkpoint: Checkpoint, out: Path, console: Console) -> None:
    evaluation = evaluate(checkpoint, checkpoint.config, "test", out)
    console.print(evaluation.table())
    for line in (*evaluation.notes(), verdict(evaluation.rows)):
        _print(console, line)


def _print_results(config: Config, sweep: Sweep, page: Path, console: Console) -> None:
    """Print what was confirmed, where everything is and what to run next."""
    if sweep.confirmation:
        _print(console, sweep.confirmation.in_words())
    folder = _short(config.run.folder)
    best, best_config = _short(sweep.best), _short(sweep.best_config)
    activate = f" (first: . {_short(Path(sys.prefix) / 'bin' / 'activate')})"
    _print(
        console,
        f"dataset       {_short(config.data.path)}\n"
        f"trained run   {folder}/train   (metrics.csv, checkpoints, TensorBoard)\n"
        f"sweep         {_short(sweep.folder)}   (leaderboard.parquet, best.yaml, confirm)\n"
        f"sweep's page  {_short(page)}\n"
        f"best run      {best}\n"
        f"test scores   {folder}/test   ({PREDICTIONS_FILE}, scores.json)\n"
        f"figures       {folder}/figures\n"
        f"next{'' if shutil.which('raymed') else activate}:\n"
        f"  tensorboard --logdir {folder}\n"
        f"  raymed train {best_config} run.folder={folder} training.epochs=30\n"
        f"  raymed evaluate {best} split=val\n"
        "  raymed init .              copies example files for real data, sweeps and clusters\n"
        "  raymed prepare --help      for your own images and reports",
    )


def _print(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _short(path: AnyPath | str) -> str:
    """A path relative to the working directory if it is below it."""
    full, here = os.path.abspath(str(path)), os.getcwd()
    return os.path.relpath(full, here) if full.startswith(here + os.sep) else full


def _empty(folder: Path) -> None:
    """Delete an earlier demo, but nothing else."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).exists():
            raise UsageError(
                f"{folder}: exists but is not an earlier demo; give another run.folder"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
