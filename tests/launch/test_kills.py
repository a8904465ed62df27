"""SIGKILL at random steps, to drivers, workers and nodes: every run ends as the undisturbed one.

There are 20 kills, at places that a seed draws.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread

import pytest
import safetensors.torch
import torch
from ray.cluster_utils import Cluster
from rich.console import Console

from raymed.config import Config
from raymed.launch.run import run_training
from raymed.training.checkpoint import MODEL_FILE, Row, latest
from raymed.training.log import METRICS_FILE, read_metrics
from raymed.training.loop import train
from raymed.training.worker import Worker
from tests.faults import train_workers
from tests.told import Told

EPOCHS, STEPS = 12, 12
TIMES = {"images_per_second", "seconds", "seconds_per_report"}
ENDLESS_S = 240.0
CLOSE = 25
"""Epochs in which rounding has not grown yet."""
DRIVER = """
import os, random, signal, sys
from threading import Timer
import torch
from rich.console import Console
from raymed import config
from raymed.launch import run
from raymed.launch.printer import Printer

class Killed(Printer):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.left = steps

    def progress(self, status):
        self.left -= 1
        if self.left == 0:
            # At once, in the middle of a step, or while the checkpoint is written.
            Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

torch.set_num_threads(1)
chance = random.Random(int(sys.argv[2]))
for kill in range(int(sys.argv[3])):
    steps, delay = chance.randint(1, 14), chance.choice([0, 0.001, 0.003, 0.01, 0.03])
    child = os.fork()
    if child == 0:
        run.Printer = Killed
        run.run_training(config.load(sys.argv[1]), Console(quiet=True))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
run.run_training(config.load(sys.argv[1]), Console(quiet=True))
"""


def enduring(tiny: Config, folder: Path, **changes: object) -> Config:
    """A run of many short steps, with a checkpoint every five of them."""
    return tiny.override(
        {
            "training.epochs": EPOCHS,
            "training.batch_size": 2,
            "data.validation_images": 1,
            "launch.checkpoint_steps": 5,
            "launch.max_failures": 9,
            "run.folder": str(folder),
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
    )


def rows_of(folder: Path) -> list[Row]:
    rows = read_metrics(folder / METRICS_FILE)
    return [{key: row[key] for key in row if key not in TIMES} for row in rows]


def assert_the_same(folder: Path, undisturbed: Path) -> None:
    """Every epoch's metrics, and the last weights and optimiser's state, bit for bit."""
    assert rows_of(folder) == rows_of(undisturbed)
    ours, expected = (latest(each) for each in (folder, undisturbed))
    assert ours is not None
    assert expected is not None
    weights, others = (safetensors.torch.load_file(each / MODEL_FILE) for each in (ours, expected))
    assert all(torch.equal(weights[name], others[name]) for name in others)
    states = [torch.load(each / "optimizer.pt")["state"] for each in (ours, expected)]
    for state, other in zip(states[0].values(), states[1].values(), strict=True):
        assert all(torch.equal(state[key], other[key]) for key in other)


def position(folder: Path) -> tuple[int, int]:
    """Epochs and steps that a run's last checkpoint holds."""
    last = latest(folder)
    if last is None:
        return 0, 0
    epoch, _, step = last.name.removeprefix("epoch-").partition("-step-")
    return (int(epoch) - 1, int(step)) if step else (int(epoch), 0)


def wait_for(folder: Path, epoch: int, step: int, process: "subprocess.Popen[str] | None") -> None:
    until = time.monotonic() + ENDLESS_S
    while position(folder) < (epoch, step):
        assert time.monotonic() < until, f"{folder} does not get to epoch {epoch}"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_drivers(tiny: Config, tmp_path: Path) -> None:
    undisturbed = enduring(tiny, tmp_path, run__name="undisturbed")
    run_training(undisturbed, Console(quiet=True))
    config = enduring(tiny, tmp_path, run__name="killed")
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "run.yaml"), "1", "15"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ENDLESS_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["-9"] * 15
    assert_the_same(tmp_path / "killed", tmp_path / "undisturbed")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_killed_workers(tiny: Config, tmp_path: Path) -> None:
    undisturbed = enduring(tiny, tmp_path, run__name="undisturbed", launch__workers=2)
    run_training(undisturbed, Console(quiet=True))
    config = enduring(tiny, tmp_path, run__name="killed", launch__workers=2)
    chance = random.Random(2)
    places = sorted(
        (chance.randrange(1, EPOCHS - 2), chance.randrange(0, STEPS, 5)) for _ in range(3)
    )
    killed: list[int] = []

    def kill() -> None:
        for epoch, step in places:
            wait_for(tmp_path / "killed", epoch, step, None)
            pids = [pid for pid in train_workers() if pid not in killed]
            while len(pids) < 2:
                time.sleep(0.05)
                pids = [pid for pid in train_workers() if pid not in killed]
            killed.append(chance.choice(pids))
            os.kill(killed[-1], signal.SIGKILL)

    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill)
        run_training(config, Console(quiet=True))
        killing.result()
    assert len(set(killed)) == 3
    assert_the_same(tmp_path / "killed", tmp_path / "undisturbed")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without processors; a test adds nodes to it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "include_dashboard": True,
            "dashboard_port": port,
            # A node that is gone is to be missed in a second.
            "_system_config": {
                "health_check_initial_delay_ms": 0,
                "health_check_period_ms": 300,
                "health_check_timeout_ms": 1000,
                "health_check_failure_threshold": 3,
            },
        },
    )
    yield cluster
    cluster.shutdown()


def start(config: Config, folder: Path, cluster: Cluster) -> "subprocess.Popen[str]":
    file = folder / f"{config.run.name}.yaml"
    file.write_text(config.override({"launch.address": cluster.address}).to_yaml())
    return subprocess.Popen(
        [Path(sys.executable).with_name("raymed"), "train", file],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
    )


@pytest.mark.ray
@pytest.mark.slow
def test_killed_nodes(tiny: Config, tmp_path: Path, cluster: Cluster) -> None:
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    undisturbed = enduring(tiny, tmp_path, run__name="undisturbed", launch__workers=2)
    out, error = start(undisturbed, tmp_path, cluster).communicate(timeout=ENDLESS_S)
    assert out.count("val CIDEr") == EPOCHS, error
    process = start(
        enduring(tiny, tmp_path, run__name="killed", launch__workers=2), tmp_path, cluster
    )
    chance = random.Random(3)
    for epoch in (2, 7):
        wait_for(tmp_path / "killed", epoch, chance.randrange(0, STEPS, 5), process)
        gone = nodes.pop(chance.randrange(2))
        cluster.remove_node(gone, allow_graceful=False)
        nodes.append(cluster.add_node(num_cpus=1))
    out, error = process.communicate(timeout=ENDLESS_S)
    assert process.returncode == 0, (out, error)
    assert_the_same(tmp_path / "killed", tmp_path / "undisturbed")


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_goes_on_with_fewer_workers_and_with_more_again(
    tiny: Config, tmp_path: Path, cluster: Cluster
) -> None:
    endless = enduring(tiny, tmp_path, training__epochs=10**5, training__warmup=0)
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    folder = tmp_path / "elastic"
    config = endless.override({"run.name": "elastic", "launch.workers": [1, 2]})
    process = start(config, tmp_path, cluster)
    printed: list[str] = []
    assert process.stdout is not None
    reader = Thread(target=printed.extend, args=(process.stdout,))
    reader.start()
    wait_for(folder, 5, 0, process)
    cluster.remove_node(nodes.pop(), allow_graceful=False)
    goes_on(printed, "1 worker(s)", process)
    wait_for(folder, position(folder)[0] + 3, 0, process)
    cluster.add_node(num_cpus=1)
    goes_on(printed, "2 worker(s)", process)
    wait_for(folder, position(folder)[0] + 3, 0, process)
    # As a machine that is taken away is told.
    process.send_signal(signal.SIGTERM)
    assert process.wait(ENDLESS_S) == 143
    reader.join()
    process.stdout.close()
    assert process.stderr is not None
    process.stderr.close()
    assert "SIGTERM: the workers write a checkpoint and end\n" in printed
    # One worker computes what two do but for rounding, which grows with every step.
    found = rows_of(folder)
    assert [row["epoch"] for row in found] == list(range(1, len(found) + 1))
    told = Told(lambda row: stop() if row["epoch"] == min(CLOSE, len(found)) else None)
    with pytest.raises(KeyboardInterrupt):
        train(endless, tmp_path / "alone", Worker(torch.device("cpu")), told)
    for row, other in zip(found, told.rows, strict=False):
        for key in ("learning_rate", *(key for key in row if key.startswith("loss"))):
            assert row[key] == pytest.approx(other[key], rel=1e-2), (row["epoch"], key)


def goes_on(printed: list[str], workers: str, process: "subprocess.Popen[str]") -> None:
    until = time.monotonic() + ENDLESS_S
    while f"training goes on with {workers}\n" not in printed:
        assert time.monotonic() < until, printed
        assert process.poll() is None, printed
        time.sleep(0.1)


def stop() -> None:
    raise KeyboardInterrupt
