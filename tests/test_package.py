"""What is installed from a wheel works by itself: without the checkout, in an empty folder."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

import raymed
from raymed.config import load
from raymed.demo import SHOWN
from raymed.metrics.table import scored_metrics
from raymed.notices import NOT_FOR_CLINICAL_USE
from raymed.predictions_file import BASELINES
from raymed.training.checkpoint import Checkpoint

ROOT = Path(__file__).parents[1]
SMALL_DEMO = """
import sys
from raymed import cli, demo

demo.STUDIES, demo.IMAGE_SIZE = 40, 32
sys.exit(cli.main(["demo", *sys.argv[1:]]))
"""
SETTINGS = [
    *("model.hidden_size=16", "model.embedding_size=16", "training.epochs=2", "tune.trials=3"),
    *("tune.confirm.top=1", "tune.confirm.seeds=2"),
]

SHARED = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "RAY_worker_niceness",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER",
    "REPORTER_UPDATE_INTERVAL_MS",
)
"""Variables that conftest.py sets for busy machines."""


def hatchling(kind: str, project: Path, out: Path) -> Path:
    """Build a wheel or an sdist; the file."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", out]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    (file,) = out.iterdir()
    return file


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the sdist, so that both are complete."""
    folder = tmp_path_factory.mktemp("build")
    # tarfile's filters came with Python 3.11.4.
    archive = hatchling("sdist", ROOT, folder / "sdist")
    subprocess.run(["tar", "-xzf", archive, "-C", folder], check=True)
    return hatchling("wheel", folder / f"raymed-{raymed.__version__}", folder / "wheel")


def test_a_wheel_has_the_examples_and_every_module(wheel: Path) -> None:
    files = [
        *(ROOT / "raymed").rglob("*.py"),
        *(ROOT / "raymed").rglob("*.html"),
        *(ROOT / "raymed").rglob("*.md"),
        ROOT / "raymed" / "py.typed",
        *(path for path in (ROOT / "tune_configs").rglob("*") if path.is_file()),
        *(path for path in (ROOT / "cluster").rglob("*") if path.is_file()),
    ]
    names = [path.relative_to(ROOT) for path in files]
    inside = [str(name if name.parts[0] == "raymed" else "raymed" / name) for name in names]
    with zipfile.ZipFile(wheel) as archive:
        found = [name for name in archive.namelist() if ".dist-info/" not in name]
        assert sorted(found) == sorted(inside)
        for name, path in zip(inside, files, strict=True):
            assert archive.read(name) == path.read_bytes()


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel and, by reference, its dependencies."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", environment, "install"]
    subprocess.run([*pip, "--no-index", "--no-deps", wheel], check=True)
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = environment / "lib" / python / "site-packages"
    # In a folder that is named so, files that end in .pth have no effect: an editable install is
    # not seen.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return environment / "bin"


@pytest.mark.ray
@pytest.mark.slow
def test_a_wheel_runs_the_demo_in_an_empty_folder(
    installed: Path, tmp_path: Path, ray_files: Path
) -> None:
    home, folder = tmp_path / "home", tmp_path / "folder"
    home.mkdir()
    folder.mkdir()
    env = {
        "PATH": f"{installed}:/usr/bin:/bin",
        "HOME": str(home),
        "RAY_TMPDIR": str(ray_files),
        "COLUMNS": "100",
        **{key: value for key, value in os.environ.items() if key in SHARED},
    }

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    assert run(installed / "raymed", "--version") == f"raymed {raymed.__version__}\n"
    where = run(installed / "python", "-c", "import raymed; print(raymed.__file__)")
    assert Path(where).is_relative_to(installed.parent)
    missing = subprocess.run(
        [installed / "raymed", "train", "tune_configs/iu_xray.yaml"],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
    )
    assert (missing.returncode, "`raymed init .`" in missing.stderr) == (2, True)
    assert list(folder.iterdir()) == []
    text = run(installed / "python", "-c", SMALL_DEMO, *SETTINGS)
    assert [path.name for path in folder.iterdir()] == ["runs"]
    check_demo(text, folder)
    run(installed / "raymed", "init", ".")
    assert "iu-xray" in run(installed / "raymed", "config", "tune_configs/iu_xray.yaml")


def check_demo(text: str, folder: Path) -> None:
    """What a demo that ran in a folder printed and wrote."""
    steps = ["prepare", "train", "tune", "evaluate", "predict", "done in"]
    places = [re.search(rf"─ .*{step}", text) for step in steps]
    assert all(places), text
    assert [place.start() for place in places if place] == sorted(
        place.start() for place in places if place
    )
    assert re.search(r"^CIDEr [\d.]+(: beats| does not beat) the ", text, re.MULTILINE)
    demo = folder / "runs" / "demo"
    figures = list((demo / "figures").iterdir())
    assert text.count(NOT_FOR_CLINICAL_USE) == len(figures)
    # All paths are relative to the working directory, and exist.
    end = text[text.index("done in") :]
    assert str(folder) not in end
    listed = re.findall(r"^\S.*?  +(runs/demo\S*)", end, re.MULTILINE)
    assert "over 2 seeds, " in end
    assert "he file's own settings" in end
    assert "  raymed init . " in end
    assert pq.read_table(demo / "sweep" / "confirmed.parquet").num_rows == 2
    assert "runs/demo/sweep/report.html" in listed
    assert len(listed) == 7
    for path in listed:
        assert (folder / path).exists(), path
    assert Checkpoint.open(demo / "train").config.launch.workers == 2
    assert pq.read_table(demo / "sweep" / "leaderboard.parquet").num_rows == 3
    best = re.search(r"^best run +(\S+)", end, re.MULTILINE)
    assert best
    assert Path(best[1]).match("demo/sweep/confirm/*-seed-1"), "the confirmed settings, not a trial"
    confirmed = load(demo / "sweep" / "best.yaml")
    assert load(folder / best[1] / "config.yaml").loss == confirmed.loss
    rows = json.loads((demo / "test" / "scores.json").read_text())["rows"]
    assert set(rows) == {"co_attention", *BASELINES}
    assert rows["co_attention"].keys() == {metric.key for metric in scored_metrics()}
    assert 1 <= len(figures) <= SHOWN
    for figure in figures:
        with Image.open(figure) as picture:
            assert picture.format == "PNG"
    assert confirmed.data.path == str(demo / "phantom")
