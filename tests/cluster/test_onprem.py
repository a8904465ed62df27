"""cluster/onprem.yaml on three hosts, as its README says: up, a training, a sweep, down."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from raymed.config import load
from raymed.launch.run import run_training
from raymed.training.checkpoint import Checkpoint
from raymed.training.log import METRICS_FILE, read_metrics
from tests.support.hosts import DESK, Hosts, hosts, living_in, missing

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
DASHBOARD = "http://127.0.0.1:8265"
GET = """
import sys, urllib.error, urllib.request
address, token = sys.argv[1:]
request = urllib.request.Request(address)
if token: request.add_header("Authorization", f"Bearer {token}")
try:
    with urllib.request.urlopen(request) as answer: print(answer.status, answer.read().decode())
except urllib.error.HTTPError as error: print(error.code)
except (urllib.error.URLError, ConnectionError) as error:
    refused = isinstance(getattr(error, "reason", error), ConnectionRefusedError)
    print("refused" if refused else error)
"""
"""A GET request as a script; one of Ray's own commands would load Ray for seconds."""
CPUS = os.cpu_count() or 1
HEAD, ONE, TWO = "head", "one", "two"
SETTINGS = [
    *("model.hidden_size=16", "model.embedding_size=12", "model.dropout=0"),
    *("launch.workers=2", f"launch.cpus_per_worker={CPUS}"),
]
VARIABLES = (
    # The head looks for hosts to start every second, not every five.
    "AUTOSCALER_UPDATE_INTERVAL_S=1",
    # The hosts share this machine's cores: workers yield to none, and waiting threads do not spin.
    "RAY_worker_niceness=0",
    "OMP_WAIT_POLICY=PASSIVE",
)
"""Set in the hosts' shells."""
LIMIT_S = 600


class Cluster:
    """The cluster, seen from the desk."""

    def __init__(self, there: Hosts, file: Path, shared: Path) -> None:
        self.there, self.file, self.shared = there, file, shared

    def command(self, *words: str | Path) -> list[str]:
        path = f"{RAY.parent}:/usr/sbin:/usr/bin:/sbin:/bin"
        env = {"PATH": path, "RAY_AUTH_MODE": "token", "PYTHONDONTWRITEBYTECODE": "1"}
        return self.there.on_desk(words, ROOT, env)

    def run(self, *words: str | Path) -> str:
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=LIMIT_S)
        assert done.returncode == 0, f"{words}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
        return done.stdout

    def submit(self, name: str, *words: str | Path) -> str:
        """Run a job to its end; what it printed."""
        job = [RAY, "job", "submit", "--address", DASHBOARD, "--submission-id", name]
        return self.run(*job, "--working-dir", ROOT, "--", "python", "-m", "raymed", *words)

    def get(self, address: str, token: str = "") -> tuple[str, str]:
        """The answer to a GET request: its status, or what went wrong, and its content."""
        out = self.run(sys.executable, "-I", "-c", GET, address, token)
        status, _, content = out.partition(" ")
        return status.strip(), content

    def listed(self, what: str, **filters: str) -> list[dict[str, Any]]:
        """What `ray list` lists, with all details; nothing where no dashboard answers yet."""
        query: list[tuple[str, str | int]] = [("detail", 1), ("limit", 1000)]
        for key, value in filters.items():
            query += [("filter_keys", key), ("filter_predicates", "="), ("filter_values", value)]
        token = (self.there.homes[DESK] / ".ray" / "auth_token").read_text().strip()
        status, content = self.get(f"{DASHBOARD}/api/v0/{what}?{urlencode(query)}", token)
        if status != "200":
            return []
        found: list[dict[str, Any]] = json.loads(content)["data"]["result"]["result"]
        return found

    def hosts_of_workers(self, job: str) -> list[str]:
        """Names of the hosts where the Ray Train workers of a job were."""
        of_address = {address: name for name, address in self.there.addresses.items()}
        names = {n["node_id"]: of_address[n["node_ip"]] for n in self.listed("nodes")}
        jobs = self.listed("jobs")
        number = next(each["job_id"] for each in jobs if each["submission_id"] == job)
        actors = self.listed("actors", job_id=number)
        workers = [actor for actor in actors if "TrainWorker" in actor["class_name"]]
        return sorted(names[actor["node_id"]] for actor in workers)


def traces() -> dict[str, Any]:
    """What a run might leave on this machine: network devices, files of Ray's and of SSH's."""
    home = Path.home()
    return {
        "devices": sorted(os.listdir("/sys/class/net")),
        "namespaces": sorted(map(str, Path("/run/netns").glob("*"))),
        "files": {
            str(path): path.read_bytes()
            for folder in (home / ".ray", home / ".ssh")
            for path in folder.rglob("*")
            if path.is_file()
        },
        "home": sorted(map(str, home.glob("ray*"))),
        "sockets": sorted(map(str, Path("/tmp").glob("ray_ssh_*/*"))),
        "clusters": sorted(map(str, Path("/tmp/ray").glob("cluster-*"))),
        "host": socket.gethostname(),
        "mounts": Path("/proc/self/mounts").read_text(),
    }


def configuration(there: Hosts) -> dict[str, Any]:
    """cluster/onprem.yaml with these hosts in it, and without the installation of packages."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster" / "onprem.yaml").read_text())
    config["provider"]["head_ip"] = there.addresses[HEAD]
    config["provider"]["worker_ips"] = [there.addresses[ONE], there.addresses[TWO]]
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(there.key)}
    installing = [command for command in config["setup_commands"] if "pip install" in command]
    assert len(installing) == 1
    config["setup_commands"].remove(installing[0])
    for name in (HEAD, ONE, TWO):
        (there.homes[name] / "raymed-env").symlink_to(sys.prefix)
        (there.homes[name] / ".bashrc").write_text("".join(f"export {v}\n" for v in VARIABLES))
    return config


@pytest.fixture
def cluster(
    tmp_path: Path, phantom: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Three hosts with nothing on them, a desk, and the cluster's file there."""
    lacking = missing()
    if lacking:
        pytest.skip(f"no hosts can be made of namespaces here: {lacking}")
    assert phantom.is_relative_to(tmp_path_factory.getbasetemp())
    # What is seen on all hosts: datasets and runs, and Python with its packages.
    kept = [tmp_path_factory.getbasetemp(), ROOT, Path(sys.prefix), Path(sys.base_prefix)]
    # Another test's Ray might write it meanwhile, which is no trace of this cluster's.
    if not (Path.home() / ".ray" / "auth_token").exists():
        subprocess.run([RAY, "get-auth-token", "--generate"], check=True, capture_output=True)
    before = traces()
    with hosts((HEAD, ONE, TWO), tmp_path / "hosts", kept) as there:
        file = tmp_path / "onprem.yaml"
        file.write_text(yaml.safe_dump(configuration(there)))
        yield Cluster(there, file, tmp_path / "shared")
    assert living_in(there.namespaces) == []
    assert traces() == before


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_up_a_training_a_sweep_and_down(cluster: Cluster, phantom: Path) -> None:
    cluster.run(RAY, "get-auth-token", "--generate")
    cluster.run(RAY, "up", "--yes", "--no-config-cache", cluster.file)
    tunnel = subprocess.Popen(cluster.command(RAY, "dashboard", cluster.file, "--no-config-cache"))
    try:
        wait_until(lambda: three_nodes(cluster))
        # Without a token, and not through the tunnel.
        assert cluster.get(f"{DASHBOARD}/api/jobs/")[0] == "401"
        head = f"http://{cluster.there.addresses[HEAD]}:8265"
        assert cluster.get(f"{head}/api/jobs/")[0] == "refused"
        train(cluster, phantom)
        sweep(cluster, phantom)
    finally:
        tunnel.terminate()
        tunnel.wait()
    assert ray_on(cluster, HEAD)
    cluster.run(RAY, "down", "--yes", cluster.file)
    for host in (HEAD, ONE, TWO):
        wait_until(lambda host=host: not ray_on(cluster, host))


def train(cluster: Cluster, phantom: Path) -> None:
    """Two workers on two hosts learn what one process learns."""
    settings = [*SETTINGS, f"data.path={phantom}", "training.epochs=2", "run.name=trained"]
    file = Path("tune_configs") / "smoke.yaml"
    out = cluster.submit("train", "train", file, *settings, f"run.folder={cluster.shared}")
    assert "epoch 2/2" in out
    assert cluster.hosts_of_workers("train") == [ONE, TWO]
    alone = load(
        ROOT / file, [*settings, f"run.folder={cluster.shared / 'alone'}", "launch.workers=0"]
    )
    run_training(alone, Console(quiet=True))
    there, here = (
        [row["loss"] for row in read_metrics(folder / "trained" / METRICS_FILE)]
        for folder in (cluster.shared, cluster.shared / "alone")
    )
    assert there == pytest.approx(here, rel=1e-3)
    fetched = cluster.shared / "fetched"
    fetched.mkdir()
    cluster.run(RAY, "rsync-down", cluster.file, f"{cluster.shared / 'trained'}/", f"{fetched}/")
    assert Checkpoint.open(fetched).epoch == 2


def sweep(cluster: Cluster, phantom: Path) -> None:
    """Two trials, each trained by two workers on two hosts."""
    settings = [*SETTINGS, f"data.path={phantom}", "training.epochs=1", "run.name=swept"]
    settings += ["tune.trials=2", f"run.folder={cluster.shared}"]
    file = Path("tune_configs") / "smoke.yaml"
    cluster.submit("sweep", "tune", file, *settings)
    leaderboard = pq.read_table(cluster.shared / "swept" / "leaderboard.parquet")
    assert leaderboard.num_rows == 2
    assert cluster.hosts_of_workers("sweep") == [ONE, TWO]


def three_nodes(cluster: Cluster) -> bool:
    return [node["state"] for node in cluster.listed("nodes")].count("ALIVE") == 3


def ray_on(cluster: Cluster, host: str) -> bool:
    """Whether a process of Ray's is on a host: each has its files' folder in its command."""
    ssh = ["ssh", "-q", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    ask = "ps -e -o args | grep -c '^[^ ]*/ray/core/src/ray/'"
    recorder = subprocess.run(
        cluster.command(*ssh, "-i", cluster.there.key, cluster.there.addresses[host], ask),
        capture_output=True,
        text=True,
    )
    return int(recorder.stdout) > 0


def wait_until(holds: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    until = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < until, "it has not come about"
        time.sleep(0.5)
