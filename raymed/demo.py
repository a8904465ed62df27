"""The whole main job on phantom studies: what `make demo` runs."""

import shutil
import time
from pathlib import Path

from rich.console import Console

from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.data.prepare import prepare_source
from raymed.data.sources.phantom import PhantomSettings
from raymed.errors import UsageError
from raymed.evaluation import PREDICTIONS_FILE, evaluate
from raymed.launch.cluster import connected
from raymed.launch.run import run_training
from raymed.prediction import predict_rows, print_prediction
from raymed.training.checkpoint import Checkpoint
from raymed.tuning.sweep import run_sweep

STUDIES = 1000
IMAGE_SIZE = 64
SHOWN = 3
MARK = ".raymed-demo"


def run_demo(config: Config, console: Console) -> None:
    """Prepare, train with two workers, sweep, score the best trial, and show a few reports.

    Args:
        config: of a sweep; its run.folder is the demo's own and is emptied first.
        console: to print on.

    Raises:
        UsageError: the folder holds something that is not a demo's.
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
        console.rule("3  tune: Ray Tune and Optuna over six parameters")
        sweep = run_sweep(config, console)

    console.rule("4  evaluate: the best trial on studies that it never saw")
    checkpoint = Checkpoint.open(sweep.best)
    evaluation = evaluate(checkpoint, checkpoint.config, "test", folder / "test")
    console.print(evaluation.table())
    for note in evaluation.notes():
        console.print(note, highlight=False, markup=False, soft_wrap=True)

    console.rule("5  predict: reports and attention for a few test images")
    test = PreparedDataset.open(config.data.path).split("test")
    shown = [row for row in range(len(test)) if test.findings[row]][:SHOWN]
    for prediction in predict_rows(checkpoint, checkpoint.config, test, shown, folder / "figures"):
        print_prediction(prediction, console)

    console.rule(f"done in {time.monotonic() - began:.0f} s")
    console.print(
        f"dataset      {config.data.path}\n"
        f"trained run   {folder / 'train'}   (metrics.csv, checkpoints, TensorBoard)\n"
        f"sweep         {sweep.folder}   (leaderboard.parquet, best.yaml, trials, optuna.journal)\n"
        f"best trial    {sweep.best}\n"
        f"test scores   {folder / 'test'}   ({PREDICTIONS_FILE}, scores.json)\n"
        f"figures       {folder / 'figures'}\n"
        "next, with the environment that make made (. .venv/bin/activate):\n"
        f"  tensorboard --logdir {folder}\n"
        f"  raymed train {sweep.best_config} run.folder={folder} training.epochs=30\n"
        f"  raymed evaluate {sweep.best} split=val\n"
        "  raymed prepare --help      your own images and reports; then the README",
        highlight=False,
        soft_wrap=True,
    )


def _empty(folder: Path) -> None:
    """Delete an earlier demo, and nothing else."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).exists():
            raise UsageError(
                f"{folder}: is not an earlier demo's folder; give another one by run.folder="
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
