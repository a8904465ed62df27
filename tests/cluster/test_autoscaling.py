"""A run on a cluster that has no worker yet and adds them: Ray's own stand-in for a cloud's."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from raymed.config import Config
from raymed.training.log import METRICS_FILE, read_metrics
from tests.cluster.hosts import UNSHARE, missing

ROOT = Path(__file__).parents[2]
# `AutoscalingCluster` ends every Ray that it can see, so it must see no other.
PREPARE = """
set -e
ip link set lo up
mount -t tmpfs tmpfs /dev/shm
exec "$0" "$@"
"""
SCRIPT = """
import subprocess, sys, time
import ray
from ray.cluster_utils import AutoscalingCluster

node = {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2}
cluster = AutoscalingCluster({"CPU": 0}, {"worker": node}, idle_timeout_minutes=0.1)
cluster.start()
raymed = [sys.executable, "-m", "raymed", "train", sys.argv[1]]
refused = subprocess.run([*raymed, "launch.workers=1"], capture_output=True, text=True)
print("refused", refused.returncode, refused.stderr)
trained = subprocess.run([*raymed, "launch.workers=2", "launch.wait_minutes=2"])
print("trained", trained.returncode, flush=True)
ray.init("auto", log_to_driver=False)
until = time.monotonic() + 60
while "CPU" in ray.cluster_resources() and time.monotonic() < until:
    time.sleep(0.5)
print("left", ray.cluster_resources().get("CPU", 0))
"""


@pytest.fixture
def ray_files() -> Iterator[Path]:
    """A folder for Ray's files; its sockets must have shorter names than `tmp_path` gives."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.cluster
@pytest.mark.slow
def test_a_run_waits_for_the_nodes_that_it_asks_for_and_they_go_after_it(
    tiny: Config, tmp_path: Path, ray_files: Path
) -> None:
    lacking = missing()
    if lacking:
        pytest.skip(f"no processes of their own can be had here: {lacking}")
    file = tmp_path / "run.yaml"
    file.write_text(tiny.override({"run.folder": str(tmp_path), "training.epochs": 1}).to_yaml())
    done = subprocess.run(
        [*UNSHARE, "bash", "-c", PREPARE, sys.executable, "-c", SCRIPT, file],
        env={
            "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(ROOT),
            "HOME": str(tmp_path),
            "TMPDIR": str(tmp_path),
            "RAY_TMPDIR": str(ray_files),
            "RAY_AUTH_MODE": "token",
            "RAY_ADDRESS": "127.0.0.1:6379",
        },
        capture_output=True,
        text=True,
    )
    assert "refused 2 raymed: launch.workers: 1 workers need 1 CPU, and the cluster has 0" in (
        done.stdout
    ), done.stderr
    assert "waiting for nodes: the cluster has 0 of 2 CPU" in done.stdout
    assert "trained 0" in done.stdout
    assert "left 0" in done.stdout
    assert len(read_metrics(tmp_path / "run" / METRICS_FILE)) == 1
