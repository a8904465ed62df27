"""Workers and nodes that are killed, and a run that goes on with fewer workers and with more."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ray.cluster_utils import Cluster
from ray.experimental import internal_kv

from raymed.config import Config
from raymed.training.loop import train
from raymed.training.worker import Worker
from tests.support.faults import processes
from tests.support.linux import needs_proc
from tests.support.long_runs import (
    ENDLESS_S,
    EPOCHS,
    STEPS,
    assert_the_same,
    long_run,
    position,
    wait_for,
)
from tests.support.metric_rows import rows_of
from tests.support.recording import Recorder

CLOSE = 25
"""Epochs in which rounding has not grown yet."""


@pytest.fixture(scope="module")
def head() -> Iterator[Cluster]:
    """A head without processors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        # The cluster's shutdown would take it from the Ray that this process may be connected to.
        patch.setattr(internal_kv, "global_gcs_client", internal_kv.global_gcs_client)
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": True,
                "dashboard_port": port,
                # A dead node is noticed within a second.
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


@pytest.fixture
def cluster(head: Cluster) -> Iterator[Cluster]:
    """The head, for a test to add nodes to; they are removed after it."""
    yield head
    for node in [*head.worker_nodes]:
        head.remove_node(node, allow_graceful=False)


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


def train_in_pair(rank: int, config: Config, folder: Path) -> None:
    """One of two workers of a run without Ray."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder.parent / 'rendezvous'}", rank=rank, world_size=2
    )
    train(config, folder, Worker(torch.device("cpu"), rank, 2), Recorder())
    dist.destroy_process_group()


@needs_proc
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(3 * ENDLESS_S)
def test_killed_workers_and_nodes(tiny: Config, tmp_path: Path, cluster: Cluster) -> None:
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    config = long_run(tiny, tmp_path, run__name="killed", launch__workers=2)
    folder = tmp_path / "killed"
    process = start(config, tmp_path, cluster)
    chance = random.Random(3)
    killed: set[int] = set()
    for epochs, what in zip((1, 5), chance.sample(["worker", "node"], 2), strict=True):
        place = chance.randrange(epochs, epochs + 2), chance.randrange(0, STEPS, 5)
        wait_for(folder, *place, process)
        if what == "node":
            cluster.remove_node(nodes.pop(chance.randrange(2)), allow_graceful=False)
            cluster.add_node(num_cpus=1)
        else:
            while len(pids := set(processes("RayTrainWorker", cluster.address)) - killed) < 2:
                assert process.poll() is None, process.communicate()
                time.sleep(0.05)
            killed.add(chance.choice(sorted(pids)))
            os.kill(max(killed & pids), signal.SIGKILL)
    out, error = process.communicate(timeout=ENDLESS_S)
    assert process.returncode == 0, (out, error)
    assert f"epoch {EPOCHS}/{EPOCHS}  " in out
    assert len(killed) == 1
    # Each start of the first worker leaves a file of its own.
    assert len(list((folder / "tensorboard").iterdir())) == 1 + 2
    undisturbed = tmp_path / "undisturbed"
    mp.spawn(train_in_pair, args=(config, undisturbed), nprocs=2)
    assert len(rows_of(undisturbed)) == EPOCHS
    assert_the_same(folder, undisturbed)


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_goes_on_with_fewer_workers_and_with_more_again(
    tiny: Config, tmp_path: Path, cluster: Cluster
) -> None:
    endless = long_run(tiny, tmp_path, training__epochs=10**5, training__warmup=0)
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
    assert "SIGTERM received: the workers write a checkpoint and stop\n" in printed
    # One worker computes what two do but for rounding, which grows with every step.
    found = rows_of(folder)
    assert [row["epoch"] for row in found] == list(range(1, len(found) + 1))
    recorder = Recorder(lambda row: stop() if row["epoch"] == min(CLOSE, len(found)) else None)
    with pytest.raises(KeyboardInterrupt):
        train(endless, tmp_path / "alone", Worker(torch.device("cpu")), recorder)
    for row, other in zip(found, recorder.rows, strict=False):
        for key in ("learning_rate", *(key for key in row if key.startswith("loss"))):
            assert row[key] == pytest.approx(other[key], rel=1e-2), (row["epoch"], key)


def goes_on(printed: list[str], workers: str, process: "subprocess.Popen[str]") -> None:
    until = time.monotonic() + ENDLESS_S
    while f"training continues with {workers}\n" not in printed:
        assert time.monotonic() < until, printed
        assert process.poll() is None, printed
        time.sleep(0.1)


def stop() -> None:
    raise KeyboardInterrupt
