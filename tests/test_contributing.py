"""The worked example of CONTRIBUTING.md, carried out in a copy of the project."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = """
import sys
from raymed.cli import main
tiny = ["model.encoder=small", "model.encoder_weights=none", "model.hidden_size=8",
        "model.embedding_size=8", "launch.workers=0", "training.epochs=1", "data.path=data"]
for command in (
    ["prepare", "phantom", "out=data", "studies=24", "image_size=32", "workers=0"],
    ["train", "run.yaml", "model.system=mean_region", *tiny],
    ["evaluate", "runs/run", "split=train"],
):
    if code := main(command):
        sys.exit(code)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project with the new file."""
    shutil.copytree(ROOT / "raymed", tmp_path / "raymed", ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for name, body in re.findall(r"```python\n# ([^\n]+)\n(.*?)```", text, re.DOTALL):
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(body)
    return tmp_path


@pytest.mark.slow
def test_a_new_system_trains_and_is_scored(project: Path) -> None:
    (project / "run.yaml").write_text("model: {top_tags: 2}")
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(project), "XDG_CACHE_HOME": str(project / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((project / "runs" / "run" / "train" / "scores.json").read_text())["rows"]
    assert rows["mean_region"]["cider"] >= 0
