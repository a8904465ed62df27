"""Ctrl-C on the command itself, with a Ray that it started for itself."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raymed.config import Config
from raymed.training.checkpoint import Checkpoint, latest
from raymed.training.log import METRICS_FILE, read_metrics
from tests.support.linux import needs_proc

START_S = 300.0


def processes_of(ray_files: Path) -> list[str]:
    """Command lines of a Ray's processes: each names the folder of that Ray's files."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(ray_files) in command:
            found.append(command)
    return found


@needs_proc
@pytest.mark.ray
@pytest.mark.slow
def test_ctrl_c_ends_training_and_its_ray_and_the_run_goes_on_later(
    tiny: Config, tmp_path: Path, ray_files: Path
) -> None:
    file = tmp_path / "run.yaml"
    changes = {"run.folder": str(tmp_path), "launch.workers": 1, "training.epochs": 100_000}
    file.write_text(tiny.override(changes).to_yaml())
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [Path(sys.executable).with_name("raymed"), "train", file],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env | {"RAY_TMPDIR": str(ray_files)},
    )
    table = tmp_path / "run" / METRICS_FILE
    until = time.monotonic() + START_S
    while not read_metrics(table) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    assert processes_of(ray_files)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.startswith("training on 1 worker(s), ")
    assert "\nepoch 1/100000  loss " in out
    assert error.startswith("raymed: interrupted; ")
    assert error.count("\n") == 1
    until = time.monotonic() + 20
    while processes_of(ray_files) and time.monotonic() < until:
        time.sleep(0.1)
    assert processes_of(ray_files) == []
    # What was trained is whole.
    last = latest(tmp_path / "run")
    assert last is not None
    done = Checkpoint.open(last)
    assert done.epoch >= 1
    assert done.build_model()
