"""Sweeps whose processes are killed with SIGKILL at random moments lose nothing."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pyarrow.parquet as pq
import pytest
from optuna.trial import TrialState
from rich.console import Console

from raymed.config import NO_SWEEP, Config
from raymed.launch.run import run_training
from raymed.training.checkpoint import Row
from raymed.training.log import read_metrics
from raymed.tuning.space import propose
from raymed.tuning.study import build_sampler, open_study
from raymed.tuning.sweep import run_sweep
from tests.faults import epochs_of, killing_actors

TRIALS, EPOCHS = 4, 6
SEED = 20261124
COMMAND = "import sys; from raymed.cli import main; sys.exit(main(sys.argv[1:]))"
TIMES = ("seconds", "images_per_second", "seconds_per_report")

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def config(learner: Config, tmp_path: Path) -> Config:
    return learner.override(
        {
            "run.folder": str(tmp_path),
            "run.name": "sweep",
            "training.epochs": EPOCHS,
            "launch.workers": 1,
            "tune.trials": TRIALS,
            "tune.startup_trials": TRIALS,
            "tune.stopping": "none",
            "tune.space": {
                "training.learning_rate": {"log_uniform": [0.003, 0.01]},
                "generation.stop_threshold": {"uniform": [0.3, 0.7]},
            },
        }
    )


def untimed(rows: list[Row]) -> list[Row]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def assert_as_if_nothing_had_happened(config: Config, folder: Path) -> None:
    """Every trial once, each the same to the last bit as a run of its own."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    table = pq.read_table(folder / "leaderboard.parquet").to_pylist()
    assert sorted(row["trial"] for row in table) == [f"trial-00{n}" for n in range(TRIALS)]
    study = open_study(config, folder)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * TRIALS
    alone = optuna.create_study()
    for row in sorted(table, key=lambda row: row["trial"]):
        number = int(row["trial"][-3:])
        trial = study.trials[number]
        alone.sampler = build_sampler(config.tune, number)
        proposal = propose(alone.ask(), config.tune.space)
        assert trial.params == proposal
        assert {key: row[key] for key in config.tune.space} == proposal
        rows = read_metrics(folder / "trials" / row["trial"] / "metrics.csv")
        single = {**proposal, "run.name": f"single-{number}", "launch.workers": 0, **NO_SWEEP}
        run_training(config.override(single), Console(quiet=True))
        undisturbed = read_metrics(folder.parent / f"single-{number}" / "metrics.csv")
        assert untimed(rows) == untimed(undisturbed)
        assert row["epochs"] == EPOCHS
        assert row["score"] == trial.value == max(r["score"] for r in rows)
        assert trial.intermediate_values == {r["epoch"]: r["best_score"] for r in rows}


def test_killed_drivers(config: Config, tmp_path: Path, ray: None) -> None:  # noqa: ARG001
    chance = random.Random(SEED)
    folder = tmp_path / "sweep"
    file = tmp_path / "sweep.yaml"
    file.write_text(config.to_yaml())
    kills = 0
    finished: dict[str, int] = {}
    # While it starts, and in the middle.
    for rows in (0, chance.randint(4, 20)):
        with subprocess.Popen(
            [sys.executable, "-c", COMMAND, "tune", str(file)], stdout=subprocess.PIPE
        ) as driver:
            while driver.poll() is None and epochs_of(folder) < rows:
                time.sleep(0.01)
            time.sleep(chance.random() * (6 if rows == 0 else 0.3))
            if driver.poll() is None:
                driver.send_signal(signal.SIGKILL)
                kills += 1
        if (folder / "optuna.journal").exists():
            for trial in open_study(config, folder).trials:
                last = folder / f"trials/trial-{trial.number:03d}/checkpoints/epoch-{EPOCHS:04d}"
                if trial.state == TrialState.COMPLETE:
                    finished.setdefault(last.parts[-3], last.stat().st_mtime_ns)
    assert kills == 2, "the sweep was over before it was killed, so nothing was tested"

    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "tune", str(file)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "trials are done already" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert_as_if_nothing_had_happened(config, folder)
    # What was finished was not trained again.
    for name, written in finished.items():
        last = folder / "trials" / name / "checkpoints" / f"epoch-{EPOCHS:04d}"
        assert last.stat().st_mtime_ns == written


@pytest.mark.parametrize("name", ["JobQueue", "RayTrainWorker"])
def test_killed_actors(
    name: str,
    config: Config,
    tmp_path: Path,
    ray: None,  # noqa: ARG001
) -> None:
    chance = random.Random(SEED)
    moments = sorted(chance.sample(range(1, TRIALS * EPOCHS - 2), 2))
    with (
        open(os.devnull, "w") as nowhere,
        killing_actors(name, tmp_path / "sweep", moments) as killed,
    ):
        console = Console(file=nowhere, record=True, width=80)
        run_sweep(config, console)
    assert len(killed) == 2, "no process was killed, so nothing was tested"
    printed = console.export_text()
    assert ("the queue of trials died" in printed) == (name == "JobQueue")
    assert "Traceback" not in printed
    assert_as_if_nothing_had_happened(config, tmp_path / "sweep")
