"""The worked examples of CONTRIBUTING.md, carried out in a copy of the project."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
COMMANDS = """
import sys
from raymed.cli import main
tiny = ["model.encoder=small", "model.encoder_weights=none", "model.hidden_size=8",
        "model.embedding_size=8", "launch.workers=0", "training.epochs=1", "data.path=data"]
for command in (
    ["prepare", "pairs", "films", "out=data", "image_size=32", "workers=0"],
    ["train", "run.yaml", "model.system=mean_region", *tiny],
    ["evaluate", "runs/run", "split=train"],
):
    if code := main(command):
        sys.exit(code)
main(["prepare", "--help"])
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project with the new files and the new lines in the registries."""
    shutil.copytree(ROOT / "raymed", tmp_path / "raymed", ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for head, body in re.findall(r"```python\n# ([^\n]+)\n(.*?)```", text, re.DOTALL):
        name, _, registry = head.partition(": ")
        file = tmp_path / name
        if registry:
            file.write_text(registered(file.read_text(), registry, body))
        else:
            assert not file.exists()
            file.write_text(body)
    return tmp_path


def registered(module: str, registry: str, lines: str) -> str:
    """A module with an entry added to the beginning of a registry, and imports above the others."""
    imports = "".join(re.findall(r"^from .*\n", lines, re.MULTILINE))
    entry = re.sub(r"^from .*\n", "", lines, flags=re.MULTILINE)
    start = re.search(rf"^{registry}\b[^\n]*= \{{\n(?:[^}}]*? in \(\n)?", module, re.MULTILINE)
    assert start, f"there is no registry {registry}"
    module = module[: start.end()] + entry + module[start.end() :]
    return re.sub(r"^from raymed", imports + "from raymed", module, count=1, flags=re.MULTILINE)


@pytest.mark.slow
def test_a_new_source_system_and_metric_work_together(project: Path) -> None:
    (project / "films").mkdir()
    reports = ("effusion on the left.", "the lungs are clear.", "a nodule is seen.")
    for number in range(24):
        Image.new("L", (32, 32), 10 * number).save(project / "films" / f"{number}.png")
        (project / "films" / f"{number}.txt").write_text(reports[number % 3])
    (project / "films" / "23.txt").unlink()
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
    for shown in ("no report beside the image", "length ratio", "pairs FOLDER"):
        assert shown in done.stdout
    rows = json.loads((project / "runs" / "run" / "train" / "scores.json").read_text())["rows"]
    assert rows["mean_region"]["length"] > 0
    assert rows["constant report"]["length"] > 0
