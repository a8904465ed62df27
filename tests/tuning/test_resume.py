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

from raymed.config import SEARCH_DEFAULTS, Config
from raymed.launch.run import run_training
from raymed.training.log import read_metrics
from raymed.tuning.space import propose
from raymed.tuning.study import build_sampler, open_study
from raymed.tuning.sweep import run_sweep
from tests.support.faults import epochs_of, killing_actors
from tests.support.linux import needs_proc
from tests.support.metric_rows import untimed

TRIALS, EPOCHS = 4, 6
SEED = 20261124
COMMAND = "import sys; from raymed.cli import main; sys.exit(main(sys.argv[1:]))"

pytestmark = [pytest.mark.ray, pytest.mark.slow, needs_proc]


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
        single = {
            **proposal,
            "run.name": f"single-{number}",
            "launch.workers": 0,
            **SEARCH_DEFAULTS,
        }
        run_training(config.override(single), Console(quiet=True))
        undisturbed = read_metrics(folder.parent / f"single-{number}" / "metrics.csv")
        assert untimed(rows) == untimed(undisturbed)
        assert row["epochs"] == EPOCHS
        assert row["score"] == trial.value == max(r["score"] for r in rows)
        assert trial.intermediate_values == {r["epoch"]: r["best_score"] for r in rows}


def test_killed_drivers_and_a_killed_ray(
    config: Config,
    tmp_path: Path,
    ray: None,  # noqa: ARG001
) -> None:
    chance = random.Random(SEED)
    folder = tmp_path / "sweep"
    file = tmp_path / "sweep.yaml"
    # One group: each start of one is ten processes, and there are four starts.
    config = config.override({"tune.groups": 1})
    file.write_text(config.to_yaml())
    command = [sys.executable, "-c", COMMAND, "tune", str(file)]
    # A Ray of its own, that gives up in seconds, not in a minute, when its head is gone.
    own = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    own["RAY_gcs_rpc_server_reconnect_timeout_s"] = "3"
    finished: dict[str, int] = {}
    # While it starts, and twice in the middle.
    for rows, environment in (
        (0, None),
        (chance.randint(3, 9), None),
        (chance.randint(11, 19), own),
    ):
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        ) as driver:
            while driver.poll() is None and epochs_of(folder) < rows:
                time.sleep(0.01)
            time.sleep(chance.random() * (6 if rows == 0 else 0.3))
            assert driver.poll() is None, "over before it was killed, so nothing was tested"
            for process in children(driver.pid, ("gcs_server", "raylet")) if environment else ():
                os.kill(process, signal.SIGKILL)
            if not environment:
                driver.send_signal(signal.SIGKILL)
            driver.communicate()
            assert driver.returncode == (1 if environment else -signal.SIGKILL)
        if (folder / "optuna.journal").exists():
            for trial in open_study(config, folder).trials:
                last = folder / f"trials/trial-{trial.number:03d}/checkpoints/epoch-{EPOCHS:04d}"
                if trial.state == TrialState.COMPLETE:
                    finished.setdefault(last.parts[-3], last.stat().st_mtime_ns)

    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "trials are already done" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert_as_if_nothing_had_happened(config, folder)
    # What was finished was not trained again.
    for name, written in finished.items():
        last = folder / "trials" / name / "checkpoints" / f"epoch-{EPOCHS:04d}"
        assert last.stat().st_mtime_ns == written


def children(parent: int, names: tuple[str, ...]) -> list[int]:
    """Process ids of a process's children of these names, one of each."""
    found = {}
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        name = Path(f"/proc/{child}/comm").read_text().strip()
        if name in names:
            found[name] = int(child)
    assert len(found) == len(names)
    return list(found.values())


def test_killed_actors(config: Config, tmp_path: Path, ray: None) -> None:  # noqa: ARG001
    chance = random.Random(SEED)
    names = chance.sample(["JobQueue", "RayTrainWorker"], 2)
    # Not near the end, where the sweep may be over before its actors are listed.
    rows = sorted(chance.sample(range(1, TRIALS * EPOCHS // 2), 2))
    with (
        open(os.devnull, "w") as nowhere,
        killing_actors(tmp_path / "sweep", list(zip(rows, names, strict=True))) as killed,
    ):
        console = Console(file=nowhere, record=True, width=80)
        run_sweep(config, console)
    assert len(killed) == 2, "not every process was killed, so nothing was tested"
    printed = console.export_text()
    assert "the queue of trials died" in printed
    assert "Traceback" not in printed
    assert_as_if_nothing_had_happened(config, tmp_path / "sweep")
