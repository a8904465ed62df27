"""cluster/slurm.sbatch on two hosts, with stand-ins of Slurm's programs."""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raymed.config import Config
from raymed.training.checkpoint import Checkpoint, latest
from raymed.training.log import METRICS_FILE, read_metrics
from tests.support.hosts import Hosts, hosts, living_in, missing

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "cluster" / "slurm.sbatch"
EPOCHS, JOB = 40, "4711"
LIMIT_S = 300.0

# As the real one does, srun starts the command once on each node, in the same folder and
# environment, and exits with the highest status. Slurm's nodes share the users' homes.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
export -p >"$STUBS/environment"
printf -v command '%q ' "$@"
for node in ${SLURM_JOB_NODELIST//,/ }; do
  ssh -q -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -i "$STUBS/key" "$node" \
    "source $STUBS/environment; cd $PWD; exec $command" </dev/null &
  steps+=($!)
done
highest=0
for step in "${steps[@]}"; do
  wait "$step"
  status=$?
  ((status > highest)) && highest=$status
done
exit $highest
"""
SCONTROL = """#!/bin/bash
case $1 in
  requeue) echo "$2" >>"$STUBS/requeued" ;;
esac
"""


def options() -> dict[str, str]:
    """The #SBATCH lines of the script."""
    lines = re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SCRIPT.read_text(), re.MULTILINE)
    return dict(lines)


def test_slurm_warns_the_script_alone_and_may_queue_it_again() -> None:
    found = options()
    assert found["ntasks-per-node"] == "1"
    assert "requeue" in found
    # B: the script gets the signal, and not Ray's processes, which it would end.
    sent = re.fullmatch(r"B:TERM@(\d+)", found["signal"])
    assert sent
    assert int(sent[1]) >= 120
    # The output of the first start is kept.
    assert found["open-mode"] == "append"


class Job:
    """The script as Slurm runs it: on the first node, with the variables of its job."""

    def __init__(self, there: Hosts, folder: Path, arguments: list[str]) -> None:
        self.there, self.folder = there, folder
        self.node, *_ = there.addresses.values()
        variables = {
            "STUBS": folder,
            "PATH": f"{folder}:/usr/sbin:/usr/bin:/sbin:/bin",
            "RAYMED_ENV": sys.prefix,
            "PYTHONPATH": ROOT,
            "HOME": there.homes["one"],
            "OMP_NUM_THREADS": 1,
            "RAY_worker_niceness": 0,
            "SLURM_JOB_ID": JOB,
            "SLURM_JOB_NODELIST": ",".join(there.addresses.values()),
            "SLURM_JOB_NUM_NODES": options()["nodes"],
            "SLURM_CPUS_PER_TASK": 1,
        }
        words = ["env", *(f"{key}={value}" for key, value in variables.items())]
        script = shlex.join([*words, "bash", str(SCRIPT), *arguments])
        self.process = subprocess.Popen(
            self.ssh(f"cd {folder}; echo $$ >batch.pid; exec {script}"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ssh(self, command: str) -> list[str]:
        options = ["-q", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        words = ["ssh", *options, "-i", str(self.there.key), self.node, command]
        return self.there.on_desk(words, Path("/"), {"PATH": "/usr/bin:/bin"})

    def warn(self) -> None:
        """What Slurm does before the time limit."""
        subprocess.run(self.ssh(f"kill -TERM $(cat {self.folder}/batch.pid)"), check=True)

    def end(self) -> tuple[int, str]:
        """The exit status and the output, once it has ended."""
        out, _ = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, out


@pytest.fixture
def cluster(
    tmp_path: Path, phantom: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Hosts, Path]]:
    """Two hosts, and a folder with the stand-ins that both see."""
    if lacking := missing():
        pytest.skip(f"no hosts can be made of namespaces here: {lacking}")
    assert phantom.is_relative_to(tmp_path_factory.getbasetemp())
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name, content in (("srun", SRUN), ("scontrol", SCONTROL)):
        (stubs / name).write_text(content)
        (stubs / name).chmod(0o755)
    kept = [tmp_path_factory.getbasetemp(), ROOT, Path(sys.prefix), Path(sys.base_prefix)]
    with hosts(("one", "two"), tmp_path / "hosts", kept) as there:
        (stubs / "key").write_bytes(there.key.read_bytes())
        (stubs / "key").chmod(0o600)
        token = there.homes["one"] / ".ray" / "auth_token"
        token.parent.mkdir()
        token.write_text(os.urandom(32).hex())
        yield there, stubs
    assert living_in(there.namespaces) == []


@pytest.mark.cluster
@pytest.mark.slow
def test_a_job_at_its_time_limit_writes_a_checkpoint_and_is_queued_to_resume(
    cluster: tuple[Hosts, Path], tiny: Config, tmp_path: Path
) -> None:
    there, stubs = cluster
    changes = {"run.folder": str(tmp_path), "launch.workers": 2, "training.epochs": EPOCHS}
    (tmp_path / "run.yaml").write_text(tiny.override(changes).to_yaml())
    run = tmp_path / "run"
    job = Job(there, stubs, ["train", str(tmp_path / "run.yaml")])
    until = time.monotonic() + LIMIT_S
    while not read_metrics(run / METRICS_FILE) and time.monotonic() < until:
        assert job.process.poll() is None, job.end()[1][:3000]
        time.sleep(0.05)
    job.warn()
    status, out = job.end()
    assert status == 143, out[:5000]
    assert "SIGTERM received: the workers write a checkpoint and stop" in out
    assert "raymed: ended by SIGTERM; " in out
    assert (stubs / "requeued").read_text().split() == [JOB]
    last = latest(run)
    assert last is not None
    stopped = Checkpoint.open(last)
    # In the middle of an epoch: what was trained since its start is in the checkpoint.
    step = f", step {stopped.partial.step}" if stopped.partial else ""
    assert 1 <= stopped.epoch < EPOCHS

    status, out = Job(there, stubs, ["train", str(tmp_path / "run.yaml")]).end()
    assert status == 0, out[:5000]
    assert f"resuming after epoch {stopped.epoch}{step}\n" in out
    assert f"epoch {EPOCHS}/{EPOCHS}" in out
    assert len(read_metrics(run / METRICS_FILE)) == EPOCHS
    assert (stubs / "requeued").read_text().split() == [JOB]
