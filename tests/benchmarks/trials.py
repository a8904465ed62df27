"""What a trial of a sweep costs beside its training and validation: worker groups that stay up,
against training inside the Tune trainable itself (which suffices where a trial has one worker), a
Ray Train run inside each Tune trial, and Optuna with the loop in one process. Prints seconds per
trial and ratios, each way measured in turn and all of them again (some minutes on two cores).

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

from raymed.config import SEARCH_DEFAULTS, Config
from raymed.launch.cluster import connected
from raymed.launch.monitor import start_monitor
from raymed.launch.trainer import fit
from raymed.training.log import METRICS_FILE, read_metrics
from raymed.training.loop import train
from raymed.training.observer import Row
from raymed.training.worker import Worker
from raymed.tuning.search import StudySearch
from raymed.tuning.space import propose
from raymed.tuning.stopping import build_scheduler
from raymed.tuning.study import make_study, objectives, open_study
from raymed.tuning.sweep import run_sweep
from raymed.tuning.trial import Outcome, Proposal
from tests.support.prepared import prepare_phantom
from tests.support.recording import Recorder

STUDIES, PIXELS, EPOCHS = 120, 32, 2
ROUNDS, TRIALS, NESTED = 3, 10, 3
SPACE = {"loss.tag": {"log_uniform": [0.1, 10]}}


def beside_training(trials: list[optuna.trial.FrozenTrial], runs: list[Path]) -> list[float]:
    """Seconds from each trial's proposal to the next one's, less what its epochs took.

    The first trial, which waits for processes that serve all of them, is left out.
    """
    spent = []
    for trial, after, run in list(zip(trials, trials[1:], runs, strict=False))[1:]:
        assert trial.datetime_start is not None
        assert after.datetime_start is not None
        apart = (after.datetime_start - trial.datetime_start).total_seconds()
        spent.append(apart - sum(row["seconds"] for row in read_metrics(run / METRICS_FILE)))
    return spent


def worker_groups(config: Config, folder: Path) -> list[float]:
    sweep = config.override({"run.folder": str(folder), "run.name": "sweep"})
    run_sweep(sweep, Console(quiet=True))
    trials = open_study(sweep, folder / "sweep").trials
    return beside_training(trials, [folder / f"sweep/trials/trial-{t.number:03d}" for t in trials])


def in_process(config: Config, folder: Path) -> list[float]:
    def objective(trial: optuna.Trial) -> float:
        values = propose(trial, config.tune.space)
        one = config.override({**values, **SEARCH_DEFAULTS})
        recorder = Recorder()
        train(one, folder / str(trial.number), Worker(torch.device("cpu")), recorder)
        return recorder.rows[-1]["best_score"]

    study = optuna.create_study(direction="maximize")
    study.optimize(objective, TRIALS)
    return beside_training(study.trials, [folder / str(t.number) for t in study.trials])


def inside_trial(settings: dict[str, Any], config: Config, folder: Path) -> None:
    torch.set_num_threads(1)
    proposal = Proposal.from_config(settings)
    rows: list[Row] = []

    def report(row: Row) -> None:
        rows.append(row)
        tune.report(Outcome.of(rows).to_result(objectives(config.tune)))

    run = folder / str(proposal.number)
    train(
        config.override({**proposal.values, **SEARCH_DEFAULTS}),
        run,
        Worker(torch.device("cpu")),
        Recorder(report),
    )


def inside(config: Config, folder: Path) -> list[float]:
    """Searched and stopped as a sweep's trials are, so that only who trains them differs."""
    folder.mkdir(parents=True)
    study = make_study(config, folder)
    search = StudySearch(study, config.tune, config.training, lambda _: [], lambda *_: None)
    tuner = tune.Tuner(
        tune.with_resources(partial(inside_trial, config=config, folder=folder), {"CPU": 1}),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=build_scheduler(config),
            num_samples=TRIALS,
            max_concurrent_trials=1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=str(folder / "ray"), verbose=0),
    )
    tuner.fit()
    return beside_training(study.trials, [folder / str(t.number) for t in study.trials])


def nested_trial(proposal: dict[str, Any], config: Config, folder: Path) -> None:
    run = folder / str(proposal.pop("number"))
    fit(config.override({**proposal, **SEARCH_DEFAULTS}), run, start_monitor("benchmark"))
    tune.report({"score": read_metrics(run / METRICS_FILE)[-1]["best_score"]})


def ask(trial: optuna.Trial, config: Config) -> dict[str, Any]:
    return {**propose(trial, config.tune.space), "number": trial.number}


def nested(config: Config, folder: Path) -> list[float]:
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


WAYS = {
    "Optuna in one process": in_process,
    "worker groups that stay up": worker_groups,
    "inside the Tune trainable": inside,
    "a Ray Train run in each trial": nested,
}


def main() -> None:
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare_phantom(folder / "data", STUDIES, image_size=PIXELS)
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
        spent: dict[str, list[float]] = {way: [] for way in WAYS}
        with connected(None):
            for turn in range(ROUNDS):
                for way, measure in WAYS.items():
                    spent[way] += measure(config, folder / f"{measure.__name__}-{turn}")
    ours = statistics.median(spent["worker groups that stay up"])
    for way, seconds in spent.items():
        value = statistics.median(seconds)
        print(
            f"{way:32s} {value:8.3f} s beside training, a trial   {value / ours:6.2f} x"
            f"   ({len(seconds)} trials, {min(seconds):.3f} to {max(seconds):.3f} s)"
        )


if __name__ == "__main__":
    main()
