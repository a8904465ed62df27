"""`launch.workers=0` under Python's own debugger: a breakpoint in the model, in the one process."""

import ast
import inspect
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from raymed.config import Config
from raymed.model.attention import Attention
from raymed.training.log import METRICS_FILE, read_metrics

BATCH = 7
TOP_TAGS = 3
# Breaks the second time that attention is paid: the first is over the regions of the first batch.
COMMANDS = """
tbreak {file}:{line}
continue
where
p "shapes", tuple(x.shape), tuple(scores.shape)
p "process", __import__("os").getpid()
p "ray", "ray" in __import__("sys").modules and __import__("ray").is_initialized()
tbreak {file}:{line}
continue
p "shapes", tuple(x.shape), tuple(scores.shape)
p "sums", [round(float(s), 4) for s in scores.softmax(1).sum(1)]
continue
quit
"""


@pytest.fixture
def ray_files() -> Iterator[Path]:
    """Where a Ray would put its files."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.slow
def test_a_breakpoint_in_the_model_stops_the_training_of_workers_0(
    tiny: Config, tmp_path: Path, ray_files: Path
) -> None:
    changes = {"run.folder": str(tmp_path), "training.epochs": 1, "launch.workers": 2}
    file = tmp_path / "run.yaml"
    file.write_text(tiny.override(changes).to_yaml())
    lines, first = inspect.getsourcelines(Attention.forward)
    (offset,) = (
        number for number, line in enumerate(lines) if "alpha = at_least_float32(scores)" in line
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "pdb", "-m", "raymed", "train", file, "launch.workers=0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"RAY_TMPDIR": str(ray_files)},
    )
    out, error = process.communicate(
        COMMANDS.format(file=inspect.getsourcefile(Attention), line=first + offset), timeout=240
    )
    assert process.returncode == 0, error
    printed = re.findall(r"^\(Pdb\) (\('shapes'.*\))$", out, re.MULTILINE)
    # Over the regions of the small encoder (4 x 4 at 32 pixels), then over the tags.
    regions, tags = map(ast.literal_eval, printed)
    assert regions[1][:2] == (BATCH, 16)
    assert regions[2] == (BATCH, 16)
    assert tags[1] == (BATCH, TOP_TAGS, tiny.model.embedding_size)
    assert tags[2] == (BATCH, TOP_TAGS)
    assert f"('sums', {[1.0] * BATCH})" in out
    # The stack goes from the command to the model, without a process between them.
    assert "raymed/cli.py" in out
    assert "raymed/training/loop.py" in out
    assert f"('process', {process.pid})" in out
    assert "('ray', False)" in out
    assert list(ray_files.iterdir()) == []
    # And what was stopped is then trained to its end.
    assert "epoch 1/1" in out
    assert "The program exited via sys.exit(). Exit status: 0" in out
    assert len(read_metrics(tmp_path / "run" / METRICS_FILE)) == 1
