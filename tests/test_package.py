"""What is installed from a wheel works by itself: without the checkout, in an empty folder."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import raymed

ROOT = Path(__file__).parents[1]
SMALL_DEMO = """
import sys
from raymed import cli, demo

demo.STUDIES, demo.IMAGE_SIZE = 40, 32
sys.exit(cli.main(["demo", *sys.argv[1:]]))
"""
SETTINGS = [
    *("model.hidden_size=8", "model.embedding_size=8", "model.top_tags=2", "training.epochs=1"),
    *("tune.trials=2", "tune.startup_trials=1", "tune.grace_epochs=1", "tune.confirm="),
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
    with tarfile.open(hatchling("sdist", ROOT, folder / "sdist")) as archive:
        archive.extractall(folder, filter="data")
    return hatchling("wheel", folder / f"raymed-{raymed.__version__}", folder / "wheel")


def test_a_wheel_has_the_examples_and_every_module(wheel: Path) -> None:
    files = [
        *(ROOT / "raymed").rglob("*.py"),
        *(ROOT / "raymed").rglob("*.html"),
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
    out = run(installed / "python", "-c", SMALL_DEMO, *SETTINGS)
    assert "done in " in out
    assert [path.name for path in folder.iterdir()] == ["runs"]
    for name in ("phantom", "train", "sweep/report.html", "sweep/best.yaml", "test/scores.json"):
        assert (folder / "runs" / "demo" / name).exists(), name
    assert "  raymed init . " in out
    run(installed / "raymed", "init", ".")
    assert "iu-xray" in run(installed / "raymed", "config", "tune_configs/iu_xray.yaml")
