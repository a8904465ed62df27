"""SIGKILL to drivers at random steps: the run ends as the undisturbed one.

With the worker and the node of `test_nodes` there are 20 kills, at places that a seed draws.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from raymed.config import Config
from raymed.launch.run import run_training
from tests.support.long_runs import ENDLESS_S, assert_the_same, long_run

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
    steps, delay = chance.randint(1, 12), chance.choice([0, 0.001, 0.003, 0.01, 0.03])
    child = os.fork()
    if child == 0:
        run._DeferringPrinter = Killed
        run.run_training(config.load(sys.argv[1]), Console(quiet=True))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
run.run_training(config.load(sys.argv[1]), Console(quiet=True))
"""


@pytest.mark.slow
def test_killed_drivers(tiny: Config, tmp_path: Path) -> None:
    undisturbed = long_run(tiny, tmp_path, run__name="undisturbed")
    run_training(undisturbed, Console(quiet=True))
    config = long_run(tiny, tmp_path, run__name="killed")
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "run.yaml"), "1", "18"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ENDLESS_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["-9"] * 18
    assert_the_same(tmp_path / "killed", tmp_path / "undisturbed")
