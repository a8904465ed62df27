"""Trials that share a GPU, on a Ray that knows of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from raymed.config import Config

SWEEP = """
import sys
from rich.console import Console
from raymed import config as configuration
from raymed.tuning.sweep import run_sweep
import json
sweep = run_sweep(configuration.load(sys.argv[1]), Console(stderr=True))
print(json.dumps([one.state for one in sweep.results]))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_of_four_groups_on_one_gpu(
    on_gpu: Config,
    device: torch.device,  # noqa: ARG001
    tmp_path: Path,
) -> None:
    config = on_gpu.override(
        {
            "run.folder": str(tmp_path),
            "launch.workers": 1,
            "launch.gpus_per_worker": 0.25,
            "model.train_encoder": "none",
            "tune.trials": 6,
            "tune.groups": 4,
            "tune.stopping": "none",
            "tune.space": {"loss.tag": {"log_uniform": [0.1, 10]}},
        }
    )
    (tmp_path / "sweep.yaml").write_text(config.to_yaml())
    result = subprocess.run(
        [sys.executable, "-c", SWEEP, str(tmp_path / "sweep.yaml")],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == ["completed"] * 6
