"""Hosts out of namespaces: apart from each other, and gone with whoever made them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.hosts import hosts, living_in, missing

ROOT = Path(__file__).parents[2]
MAKE = """
import json, sys, time
from pathlib import Path
from tests.support.hosts import hosts

with hosts(["one", "two"], Path(sys.argv[1]), []) as there:
    print(json.dumps(sorted(there.namespaces)), flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _permitted() -> None:
    if lacking := missing():
        pytest.skip(f"no hosts can be made of namespaces here: {lacking}")


@pytest.mark.cluster
def test_each_host_has_its_own_name_address_processes_and_tmp(tmp_path: Path) -> None:
    with hosts(["one", "two"], tmp_path, []) as there:
        for name, other in (("one", "two"), ("two", "one")):
            ssh = ["ssh", "-q", "-o", "StrictHostKeyChecking=no", "-i", there.key]
            ask = f"hostname; hostname -I; echo ~; touch /tmp/{name}; ls /tmp; pgrep -c sshd"
            line = there.on_desk(
                [*ssh, there.addresses[name], ask], Path("/"), {"PATH": "/usr/bin:/bin"}
            )
            out = subprocess.run(line, capture_output=True, text=True, check=True).stdout
            recorder = out.split()
            assert recorder[:3] == [name, there.addresses[name], str(there.homes[name])]
            assert name in recorder[3:]
            assert other not in recorder[3:]
            # The server and the one connection: the other host's are not seen.
            assert recorder[-1] == "2"
    assert not Path("/tmp/one").exists()


@pytest.mark.cluster
def test_nothing_is_left_of_hosts_whose_maker_was_killed(tmp_path: Path) -> None:
    maker = subprocess.Popen(
        [sys.executable, "-c", MAKE, tmp_path],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert maker.stdout is not None
    namespaces = frozenset(json.loads(maker.stdout.readline()))
    assert len(living_in(namespaces)) >= 4
    devices = os.listdir("/sys/class/net")
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    maker.stdout.close()
    until = time.monotonic() + 10
    while living_in(namespaces) and time.monotonic() < until:
        time.sleep(0.1)
    assert living_in(namespaces) == []
    assert os.listdir("/sys/class/net") == devices
