"""A run on a cluster that has no worker yet and adds them: Ray's own stand-in for a cloud's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from raymed.config import Config
from raymed.training.log import METRICS_FILE, read_metrics
from tests.support.hosts import UNSHARE, missing

ROOT = Path(__file__).parents[2]
CLOUD = {
    "cluster_name": "stand-in",
    "max_workers": 2,
    "idle_timeout_minutes": 0.1,
    "upscaling_speed": 1.0,
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "auth": {},
    "docker": {},
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
        "worker": {
            "resources": {"CPU": 1},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
    },
    "file_mounts": {},
    "cluster_synced_files": [],
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}
# Namespaces end all of it with the test, nodes included.
PREPARE = """
set -e
ip link set lo up
mount -t tmpfs tmpfs /dev/shm
ray get-auth-token --generate >/dev/null 2>&1
AUTOSCALER_UPDATE_INTERVAL_S=1 RAY_FAKE_CLUSTER=1 RAY_enable_autoscaler_v2=0 \
  ray start --head --num-cpus=0 --port=6379 --autoscaling-config="$1" >&2
export RAY_ADDRESS=127.0.0.1:6379
status=0
"$0" -m raymed train "$2" launch.workers=1 2>&1 || status=$?
echo "refused: $status"
"$0" -m raymed train "$2" launch.workers=2 launch.wait_minutes=2 2>&1
echo "trained"
exec "$0" -c "$3"
"""
WAIT_FOR_THEIR_END = """
import time
import ray

ray.init("auto", log_to_driver=False)
until = time.monotonic() + 60
while "CPU" in ray.cluster_resources() and time.monotonic() < until:
    time.sleep(0.5)
print("left:", ray.cluster_resources().get("CPU", 0))
"""


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
    cloud = tmp_path / "cloud.json"
    cloud.write_text(json.dumps(CLOUD))
    command = [*UNSHARE, "bash", "-c", PREPARE]
    done = subprocess.run(
        [*command, sys.executable, cloud, file, WAIT_FOR_THEIR_END],
        env={
            "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(ROOT),
            "HOME": str(tmp_path),
            "TMPDIR": str(tmp_path),
            "RAY_TMPDIR": str(ray_files),
            "RAY_AUTH_MODE": "token",
        },
        capture_output=True,
        text=True,
    )
    out = done.stdout
    refused = "launch.workers: 1 workers need 1 CPU, and the cluster has 0: "
    assert refused in out, out + done.stderr
    assert "refused: 2\n" in out
    assert "waiting for nodes: the cluster has 0 of 2 CPU\n" in out
    assert out.endswith("left: 0\n")
    assert len(read_metrics(tmp_path / "run" / METRICS_FILE)) == 1
