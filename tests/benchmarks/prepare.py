"""Studies prepared per second and peak memory, in one process and on Ray, at 1x and 10x the data.

    python -m tests.benchmarks.prepare [studies]

One study is one image with its report: half of them PNG of 8 bits, half uncompressed DICOM of 16
bits with a window, 1,024 x 1,024 pixels each, prepared at 224. The ten times larger table names
ten links to each file. What is measured is the command a user types, the start of Ray included.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.support.dicom_files import dataset, saved

SIDE = 1024
FILES = 100


def make(folder: Path, studies: int) -> Path:
    """A table of ``studies`` rows with links to FILES images."""
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 4096, (SIDE // 16, SIDE // 16)).repeat(16, 0).repeat(16, 1)
    folder.mkdir()
    for number in range(FILES):
        pixels = (smooth + rng.integers(0, 64, (SIDE, SIDE))).astype(np.uint16)
        if number % 2:
            made = dataset(pixels, WindowCenter=2000, WindowWidth=3000)
            saved(folder / f"file{number}.dcm", made)
        else:
            Image.fromarray((pixels >> 5).astype(np.uint8)).save(folder / f"file{number}.png")
    with (folder / "table.jsonl").open("w") as table:
        for number in range(studies):
            suffix = "dcm" if number % 2 else "png"
            name = f"{number}.{suffix}"
            (folder / name).hardlink_to(folder / f"file{number % FILES}.{suffix}")
            words = ["heart", "size", "normal", "lungs", "clear", "effusion", "none", "seen"]
            report = ". ".join(" ".join(rng.permutation(words)) for _ in range(5))
            table.write(json.dumps({"image": name, "report": report}) + "\n")
    return folder / "table.jsonl"


@dataclass(frozen=True)
class Process:
    """One process as it stands."""

    parent: int
    kind: str
    """``command``, ``tasks``, or ``rest`` of Ray."""
    seconds: float
    """Of a processor, that it has used so far."""
    peak: int
    """The most memory it has held so far, MiB."""


def processes(command: int) -> dict[int, Process]:
    """Process id -> process, of the command and all below it."""
    everything = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                is_task = (entry / "cmdline").read_text().startswith("ray::")
                status = dict(
                    line.split(":", 1) for line in (entry / "status").read_text().splitlines()
                )
            except OSError:  # it has ended
                continue
            if stat[0] == "Z":  # it has too, and no longer says what it was
                continue
            everything[int(entry.name)] = Process(
                int(stat[1]),
                "command" if int(entry.name) == command else "tasks" if is_task else "rest",
                (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK"),
                int(status.get("VmHWM", "0 kB").split()[0]) // 1024,
            )
    found = {}
    waiting = [command]
    while waiting:
        one = waiting.pop()
        if one in everything:
            found[one] = everything[one]
        waiting += [child for child, process in everything.items() if process.parent == one]
    return found


@dataclass(frozen=True)
class Cost:
    """What one command took."""

    wall: float
    """Seconds, the start of Ray included."""
    used: dict[str, float]
    """Kind of process -> processor seconds; unlike the other, it hardly depends on neighbours."""
    peaks: dict[str, int]
    """Kind of process -> memory of the largest, MiB."""


def measure(table: Path, out: Path, settings: list[str]) -> Cost:
    """Run one command to its end."""
    command = [sys.executable, "-c", "from raymed.cli import main; main()", "prepare", "table"]
    began = time.monotonic()
    seen: dict[int, Process] = {}
    with subprocess.Popen(
        [*command, str(table), f"out={out}", *settings], stdout=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            seen |= processes(process.pid)
            time.sleep(0.2)
        assert process.returncode == 0
    wall = time.monotonic() - began
    used: dict[str, float] = defaultdict(float)
    peaks: dict[str, int] = defaultdict(int)
    for one in seen.values():
        used[one.kind] += one.seconds
        peaks[one.kind] = max(peaks[one.kind], one.peak)
    return Cost(wall, used, peaks)


def main() -> None:
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    print(f"{len(os.sched_getaffinity(0))} processors, images of {SIDE} x {SIDE}")
    costs: dict[tuple[str, int], Cost] = {}
    with tempfile.TemporaryDirectory() as folder:
        for times in (1, 10):
            table = make(Path(folder, f"{times}"), studies * times)
            hashes = set()
            for title, settings in (("one process", ["workers=0"]), ("Ray", [])):
                out = Path(folder, f"out-{times}-{title}")
                cost = costs[title, times] = measure(table, out, settings)
                hashes.add(json.loads((out / "dataset.json").read_text())["content_hash"])
                print(
                    f"{title:>11}, {studies * times:6,} studies: {cost.wall:6.1f} s, "
                    f"{studies * times / cost.wall:6.1f} studies/s; "
                    + ", ".join(
                        f"{kind} {cost.used[kind]:.1f} processor s, peak {cost.peaks[kind]} MiB"
                        for kind in sorted(cost.used)
                    ),
                    flush=True,
                )
            assert len(hashes) == 1
    for title in ("one process", "Ray"):
        few, many = costs[title, 1], costs[title, 10]
        used = sum(many.used.values()) - sum(few.used.values())
        print(
            f"{title}, beyond the first {studies:,}: "
            f"{9 * studies / (many.wall - few.wall):.1f} studies/s, "
            f"{1000 * used / (9 * studies):.1f} processor ms per study"
        )
        for kind in ("command", "tasks"):
            if kind in many.peaks:
                ratio = many.peaks[kind] / few.peaks[kind]
                print(f"{title}, peak of {kind}, 10x to 1x: {ratio:.2f}")
    ratio = costs["one process", 10].wall / costs["Ray", 10].wall
    print(f"Ray against one process at 10x, times as fast: {ratio:.2f}")


if __name__ == "__main__":
    main()
