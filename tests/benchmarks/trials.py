"""What a trial of a sweep costs beside its training and validation: worker groups that stay up,
against a Ray Train run inside each Tune trial, and against Optuna with the loop in one process.
Prints seconds per trial and ratios, measured in turn in one run (some minutes on two cores).

    python -m tests.benchmarks.trials
"""

import os
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch
from ray import tune
from ray.tune.search.optuna import OptunaSearch
from rich.console import Console

from raymed.config import NO_SWEEP, Config
from raymed.data.phantom import draw
from raymed.data.prepare import prepare
from raymed.launch.cluster import connected
from raymed.launch.trainer import fit
from raymed.launch.watch import start_watch
from raymed.training.log import METRICS_FILE, read_metrics
from raymed.training.loop import train
from raymed.training.worker import Worker
from raymed.tuning.space import propose
from raymed.tuning.study import open_study
from raymed.tuning.sweep import run_sweep
from tests.told import Told

STUDIES, PIXELS, EPOCHS = 120, 32, 2
TRIALS, NESTED = 16, 4
SPACE = {"loss.tag": {"log_uniform": [0.1, 10]}}


def beside_training(trials: list[optuna.trial.FrozenTrial], runs: list[Path]) -> float:
    """Median seconds from a trial's proposal to the next one's, less what its epochs took.

    The first trial, which waits for processes that serve all of them, is left out.
    """
    spent = []
    for trial, after, run in list(zip(trials, trials[1:], runs, strict=False))[1:]:
        assert trial.datetime_start is not None
        assert after.datetime_start is not None
        apart = (after.datetime_start - trial.datetime_start).total_seconds()
        spent.append(apart - sum(row["seconds"] for row in read_metrics(run / METRICS_FILE)))
    return statistics.median(spent)


def worker_groups(config: Config, folder: Path) -> float:
    sweep = config.override({"run.folder": str(folder), "run.name": "sweep"})
    run_sweep(sweep, Console(quiet=True))
    trials = open_study(sweep, folder / "sweep").trials
    return beside_training(trials, [folder / f"sweep/trials/trial-{t.number:03d}" for t in trials])


def in_process(config: Config, folder: Path) -> float:
    def objective(trial: optuna.Trial) -> float:
        values = propose(trial, config.tune.space)
        one = config.override({**values, **NO_SWEEP})
        told = Told()
        train(one, folder / str(trial.number), Worker(torch.device("cpu")), told)
        return told.rows[-1]["best_score"]

    study = optuna.create_study(direction="maximize")
    study.optimize(objective, TRIALS)
    return beside_training(study.trials, [folder / str(t.number) for t in study.trials])


def nested_trial(proposal: dict[str, Any], config: Config, folder: Path) -> None:
    run = folder / str(proposal.pop("number"))
    fit(config.override({**proposal, **NO_SWEEP}), run, start_watch())
    tune.report({"score": read_metrics(run / METRICS_FILE)[-1]["best_score"]})


def ask(trial: optuna.Trial, config: Config) -> dict[str, Any]:
    return {**propose(trial, config.tune.space), "number": trial.number}


def nested(config: Config, folder: Path) -> float:
    storage = optuna.storages.InMemoryStorage()
    search = OptunaSearch(
        partial(ask, config=config),
        metric="score",
        mode="max",
        study_name="nested",
        storage=storage,
    )
    tuner = tune.Tuner(
        tune.with_resources(partial(nested_trial, config=config, folder=folder), {"CPU": 0.5}),
        tune_config=tune.TuneConfig(search_alg=search, num_samples=NESTED, max_concurrent_trials=1),
        run_config=tune.RunConfig(storage_path=str(folder / "ray"), verbose=0),
    )
    tuner.fit()
    trials = optuna.load_study(study_name="nested", storage=storage).trials
    return beside_training(trials, [folder / str(t.number) for t in trials])


def main() -> None:
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(
            draw(STUDIES, image_size=PIXELS),
            folder / "data",
            source="phantom",
            image_size=PIXELS,
            console=Console(quiet=True),
        )
        config = Config().override(
            {
                "data.path": str(folder / "data"),
                "model.encoder": "small",
                "model.encoder_weights": "none",
                "model.hidden_size": 64,
                "model.embedding_size": 64,
                "training.epochs": EPOCHS,
                "tune.trials": TRIALS,
                "tune.groups": 1,
                "tune.stopping": "none",
                "tune.space": SPACE,
            }
        )
        seconds = {"Optuna in one process": in_process(config, folder / "process")}
        with connected(None):
            seconds["worker groups that stay up"] = worker_groups(config, folder / "groups")
            seconds["a Ray Train run in each trial"] = nested(config, folder / "nested")
    ours = seconds["worker groups that stay up"]
    for way, value in seconds.items():
        print(f"{way:32s} {value:8.3f} s beside training, a trial   {value / ours:6.2f} x")


if __name__ == "__main__":
    main()
