"""Studies prepared per second and peak memory, in one process and on Ray, at 1x and 10x the data.

    python tests/benchmarks/prepare.py [studies]

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
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.data.dicom_files import dataset, saved

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


def descendants(process: int) -> dict[int, str]:
    """Process id -> command line, of a process and all below it."""
    parents, commands = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                commands[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
                parents[int(entry.name)] = int(stat[1])
            except OSError:  # it has ended
                continue
    found: dict[int, str] = {}
    waiting = [process]
    while waiting:
        one = waiting.pop()
        found[one] = commands.get(one, "")
        waiting += [child for child, parent in parents.items() if parent == one]
    return found


def high_water(process: int) -> int:
    """The most memory a process has held so far, MiB."""
    try:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) // 1024
    except OSError:
        pass
    return 0


def measure(table: Path, out: Path, workers: str) -> tuple[float, dict[str, int]]:
    """Seconds of one command, and the peak of the command's process and of Ray's tasks, MiB."""
    command = [sys.executable, "-c", "from raymed.cli import main; main()", "prepare", "table"]
    settings = [str(table), f"out={out}", f"workers={workers}"] if workers else []
    settings = settings or [str(table), f"out={out}"]
    began = time.monotonic()
    peaks: dict[str, int] = defaultdict(int)
    with subprocess.Popen([*command, *settings], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            for one, line in descendants(process.pid).items():
                kind = "command" if one == process.pid else "task"
                if kind == "command" or line.startswith("ray::"):
                    peaks[kind] = max(peaks[kind], high_water(one))
            time.sleep(0.2)
        assert process.returncode == 0
    return time.monotonic() - began, peaks


def main() -> None:
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    print(f"{len(os.sched_getaffinity(0))} processors, images of {SIDE} x {SIDE}")
    rates, memory, hashes = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for times in (1, 10):
            table = make(Path(folder, f"{times}"), studies * times)
            for title, workers in (("one process", "0"), ("Ray", "")):
                out = Path(folder, f"out-{times}-{title}")
                seconds, peaks = measure(table, out, workers)
                rates[title, times] = studies * times / seconds
                memory[title, times] = peaks
                hashes[title, times] = json.loads((out / "dataset.json").read_text())[
                    "content_hash"
                ]
                print(
                    f"{title:>11}, {studies * times:6,} studies: {seconds:6.1f} s, "
                    f"{rates[title, times]:6.1f} studies/s, peak MiB: "
                    + ", ".join(f"{kind} {peak}" for kind, peak in peaks.items()),
                    flush=True,
                )
            assert hashes["Ray", times] == hashes["one process", times]
    more = (rates["Ray", 1] * 10 / rates["Ray", 10] - 1) * studies / rates["Ray", 1]
    print(f"Ray, beyond the first {studies:,}: {9 * studies / more:.1f} studies/s")
    print(f"Ray against one process at 10x: {rates['Ray', 10] / rates['one process', 10]:.2f}")
    for (title, times), peaks in memory.items():
        if times == 10:
            for kind, peak in peaks.items():
                print(f"peak of {title}'s {kind}, 10x to 1x: {peak / memory[title, 1][kind]:.2f}")


if __name__ == "__main__":
    main()
