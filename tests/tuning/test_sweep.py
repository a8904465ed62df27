"""One sweep of five tiny trials: one is killed on the way, two are bad, one diverges."""

import csv
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

import optuna
import pyarrow.parquet as pq
import pytest
import ray as ray_
from rich.console import Console

from raymed import config as configuration
from raymed.config import SEARCH_DEFAULTS, Config
from raymed.data.dataset import PreparedDataset
from raymed.errors import UsageError
from raymed.launch.run import run_training
from raymed.locks import folder_lock
from raymed.metrics.baselines import best_constant
from raymed.metrics.cider import cider
from raymed.run_folder import STUDY_FILE
from raymed.tuning.space import propose
from raymed.tuning.study import build_sampler
from raymed.tuning.sweep import Sweep, run_sweep
from tests.support.faults import killing_actors
from tests.support.linux import needs_proc

TRIALS, EPOCHS, SEED = 5, 12, 80
GOOD, BAD, DIVERGING = 0.01, 1e-6, 1e30
SPACE = {
    "training.learning_rate": {"choice": [GOOD, BAD, DIVERGING]},
    "loss.attention": {"log_uniform": [0.001, 0.1], "or": 0},
    "model.top_tags": {"integer": [2, 6]},
    "generation.stop_threshold": {"uniform": [0.3, 0.7]},
}


@dataclass(frozen=True)
class Seen:
    """What came of the sweep.

    Attributes:
        sweep: as `run_sweep` gives it.
        config: that it was given.
        printed: on the console.
        errors: that Ray wrote to the log.
        killed: processes that were killed on the way.
        table: rows of the leaderboard's file.
        metrics: of each trial, the rows of its metrics.csv.
    """

    sweep: Sweep
    config: Config
    printed: str
    errors: list[str]
    killed: list[int]
    table: list[dict[str, object]]
    metrics: dict[str, list[dict[str, float]]]


STATES = {
    "completed": optuna.trial.TrialState.COMPLETE,
    "stopped": optuna.trial.TrialState.PRUNED,
    "failed": optuna.trial.TrialState.FAIL,
}


class Errors(logging.Handler):
    """Keeps what is logged at the level of errors."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture(scope="module")
def config(learner: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return learner.override(
        {
            "run.folder": str(tmp_path_factory.mktemp("sweeps")),
            "run.name": "sweep",
            "training.epochs": EPOCHS,
            "launch.workers": 1,
            "tune.trials": TRIALS,
            "tune.seed": SEED,
            "tune.startup_trials": TRIALS,
            "tune.grace_epochs": 4,
            "tune.reduction_factor": 2,
            "tune.groups": 1,
            "tune.space": SPACE,
        }
    )


@pytest.fixture(scope="module")
def seen(config: Config, ray: None) -> Seen:  # noqa: ARG001
    folder = Path(config.run.folder) / "sweep"
    errors = Errors()
    logging.getLogger("ray").addHandler(errors)
    with (
        open(os.devnull, "w") as nowhere,
        killing_actors(folder, [(1, "RayTrainWorker")]) as killed,
    ):
        console = Console(file=nowhere, record=True, width=80)
        sweep = run_sweep(config, console)
    logging.getLogger("ray").removeHandler(errors)
    metrics = {}
    for trial in sorted((folder / "trials").iterdir()):
        table = trial / "metrics.csv"
        lines = table.read_text().splitlines() if table.exists() else []
        metrics[trial.name] = [
            {key: float(value) for key, value in row.items()} for row in csv.DictReader(lines)
        ]
    rows = pq.read_table(folder / "leaderboard.parquet").to_pylist()
    return Seen(sweep, config, console.export_text(), errors.messages, killed, rows, metrics)


def proposals(config: Config) -> list[dict[str, object]]:
    """What Optuna by itself proposes first with the sweep's seed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study, asked = optuna.create_study(), []
    for number in range(TRIALS):
        study.sampler = build_sampler(config.tune, number)
        asked.append(propose(study.ask(), config.tune.space))
    return asked


pytestmark = [pytest.mark.ray, pytest.mark.slow, needs_proc]


def test_the_seed_decides_what_is_proposed(seen: Seen) -> None:
    expected = proposals(seen.config)
    assert [p["training.learning_rate"] for p in expected] == [GOOD, BAD, DIVERGING, BAD, GOOD]
    assert {p["loss.attention"] == 0 for p in expected} == {True, False}
    tried = {row["trial"]: {key: row[key] for key in SPACE} for row in seen.table}
    for number, proposal in enumerate(expected):
        name = f"trial-{number:03d}"
        assert tried[name] == proposal
        # It is also what was trained.
        trained = configuration.load(seen.sweep.folder / "trials" / name / "config.yaml")
        assert trained == seen.config.override(
            proposal
            | {"run.name": name, "run.folder": str(seen.sweep.folder / "trials")}
            | SEARCH_DEFAULTS
        )


def test_the_leaderboard_is_sorted_by_what_the_trials_reported(seen: Seen) -> None:
    assert [row["place"] for row in seen.table] == list(range(1, TRIALS + 1))
    assert sorted(row["trial"] for row in seen.table) == [f"trial-{n:03d}" for n in range(TRIALS)]
    best = {
        name: max((row["cider"] for row in rows), default=-1.0)
        for name, rows in seen.metrics.items()
    }
    names = sorted(best, key=lambda name: (-best[name], name))
    assert [row["trial"] for row in seen.table] == names
    assert best[names[0]] > best[names[-2]]
    for row in seen.table:
        rows = seen.metrics[str(row["trial"])]
        assert row["epochs"] == len(rows)
        assert [r["epoch"] for r in rows] == list(range(1, len(rows) + 1))
        if rows:
            # Of epochs of one score, that of the lowest loss.
            recorder = [r for r in rows if r["cider"] == best[str(row["trial"])]]
            chosen = min(recorder, key=lambda r: r["loss"])
            assert (row["cider"], row["recall_5"]) == (chosen["cider"], chosen["recall_5"])
    assert seen.sweep.best == seen.sweep.folder / "trials" / names[0]


def test_states_tell_who_completed_was_stopped_and_failed(seen: Seen) -> None:
    states = {str(row["trial"]): row["state"] for row in seen.table}
    assert states["trial-002"] == "failed"
    assert "stopped" in states.values()
    for name, rows in seen.metrics.items():
        assert (states[name] == "completed") == (len(rows) == EPOCHS)
        if states[name] == "stopped":
            assert 4 <= len(rows) < EPOCHS
    # ASHA has an eye for it: the first of a bad rate comes after one of a good rate.
    assert states["trial-000"] == "completed"
    assert states["trial-001"] == "stopped"


def test_a_failed_trial_is_recorded_with_its_reason_and_the_sweep_goes_on(seen: Seen) -> None:
    (failed,) = (row for row in seen.table if row["state"] == "failed")
    reason = str(failed["reason"])
    assert failed["score"] is None
    assert failed["cider"] is None
    assert reason.startswith("training diverged at epoch 1, step 2: a gradient is not finite")
    assert f"trial-002: failed: {reason}" in seen.printed
    assert seen.metrics["trial-004"], "trials after it were trained"
    assert all(row["reason"] == "" for row in seen.table if row is not failed)


def test_nothing_but_our_own_lines_reaches_the_user(seen: Seen) -> None:
    assert seen.errors == []
    assert "Traceback" not in seen.printed


def test_a_trial_whose_worker_was_killed_is_taken_up_again(seen: Seen) -> None:
    assert len(seen.killed) == 1, "no worker was killed, so nothing was tested"
    folder = seen.sweep.folder / "trials" / "trial-000"
    # Each start of a trial leaves a file of its own.
    assert len(list((folder / "tensorboard").iterdir())) == 2
    assert len(seen.metrics["trial-000"]) == EPOCHS


def test_optunas_study_holds_the_same_values(seen: Seen) -> None:
    # As anyone would open it who has Optuna and not this program.
    backend = optuna.storages.journal.JournalFileBackend(str(seen.sweep.folder / STUDY_FILE))
    storage = optuna.storages.JournalStorage(backend)
    study = optuna.load_study(study_name="sweep", storage=storage)
    assert len(study.trials) == TRIALS
    for row in seen.table:
        trial = study.trials[int(str(row["trial"]).removeprefix("trial-"))]
        for key in SPACE:
            if key == "loss.attention" and row[key] == 0:
                assert trial.params["loss.attention = 0"] is True
                assert key not in trial.params
            else:
                assert trial.params[key] == row[key]
        recorder = {
            epoch: r["best_score"] for epoch, r in enumerate(seen.metrics[str(row["trial"])], 1)
        }
        assert trial.intermediate_values == recorder
        assert trial.state == STATES[str(row["state"])]
        if row["state"] == "failed":
            assert trial.user_attrs["reason"] == row["reason"]
        else:
            assert trial.value == row["score"] == row["cider"]
    assert study.best_value == seen.table[0]["score"]


def test_training_the_best_configuration_gives_the_best_trials_scores(seen: Seen) -> None:
    best = configuration.load(seen.sweep.best_config)
    assert best.run.name == "sweep-best"
    assert best.tune.space == {}
    name = str(seen.table[0]["trial"])
    checkpoint = run_training(best.override({"launch.workers": 0}), Console(quiet=True))
    times = ("seconds", "images_per_second", "seconds_per_report")
    trial = [{k: v for k, v in row.items() if k not in times} for row in seen.metrics[name]]
    again = [{k: v for k, v in row.items() if k not in times} for row in checkpoint.history]
    assert again == trial[: len(again)]
    assert again[-1]["cider"] == seen.table[0]["cider"]


def test_baselines_stand_beneath_the_trials(seen: Seen) -> None:
    dataset = PreparedDataset.open(seen.config.data.path)
    truth = dataset.split("val").references
    constant = best_constant(dataset.split("train").references)
    assert seen.sweep.baselines["constant report"]["cider"] == cider(truth, [constant] * len(truth))
    assert set(seen.sweep.baselines) == {"constant report", "nearest image"}
    lines = seen.printed.splitlines()
    for name, scores in seen.sweep.baselines.items():
        shown = [f"{scores['cider']:.3f}", f"{scores['recall_5']:.3f}"]
        assert any(line.startswith(name) and line.split()[2:] == shown for line in lines)


def test_nothing_stays_reserved_in_ray(seen: Seen) -> None:
    assert seen.sweep.results
    until = time.monotonic() + 20
    while ray_.available_resources().get("CPU") != 2 and time.monotonic() < until:
        time.sleep(0.2)
    assert ray_.available_resources()["CPU"] == 2
    assert not (seen.sweep.folder / "ray").exists()


def test_the_same_command_again_finds_nothing_to_do(seen: Seen) -> None:
    before = (seen.sweep.folder / "leaderboard.parquet").read_bytes()
    with open(os.devnull, "w") as nowhere:
        console = Console(file=nowhere, record=True, width=80)
        again = run_sweep(seen.config, console)
    assert "5 of 5 trials are already done" in console.export_text()
    assert again.results == seen.sweep.results
    assert (seen.sweep.folder / "leaderboard.parquet").read_bytes() == before


def test_a_sweep_of_another_configuration_is_refused(seen: Seen) -> None:
    before = (seen.sweep.folder / "leaderboard.parquet").read_bytes()
    changed = {"training.batch_size": 5, "tune.groups": 2, "tune.seed": 1}
    with pytest.raises(UsageError) as caught:
        run_sweep(seen.config.override(changed), Console(quiet=True))
    assert "training.batch_size: 4 -> 5; tune.seed: 80 -> 1" in str(caught.value)
    assert (seen.sweep.folder / "leaderboard.parquet").read_bytes() == before


def test_a_second_start_at_the_same_time_stops(seen: Seen) -> None:
    with (
        folder_lock(seen.sweep.folder),
        pytest.raises(UsageError, match=f"is in use by another raymed .process {os.getpid()} on"),
    ):
        run_sweep(seen.config, Console(quiet=True))
