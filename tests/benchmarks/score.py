"""`raymed score` at two sizes: time and memory for each report, and whether they grow.

    python -m tests.benchmarks.score [FEW MANY]

Reports are of two sentences of seven words, two to a study, in JSON Lines, with references of the
same form. Times are of the CPU, in microseconds for each report, by the steps of scoring; those
that do not grow with the number of reports have a ratio of 1. METEOR is left out: its Java program
takes longer than all the rest, in proportion to the reports. Memory is as in
`tests.benchmarks.memory`, without pages of mapped files.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from raymed import predictions_file, scoring
from raymed.metrics import meteor
from raymed.scoring import Request, score

FEW, MANY = 20_000, 200_000
WORDS = 650
STEPS = (
    (scoring, "read_reports"),
    (scoring, "match"),
    (scoring, "_write_matched"),
    (predictions_file, "score_split"),
    (predictions_file, "intervals"),
    (predictions_file, "_write_per_report"),
    (scoring, "_write_radeval"),
)


def write(path: Path, count: int, seed: int) -> Path:
    """Reports of frequent and rare words."""
    random = np.random.default_rng(seed)
    words = np.array([f"word{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(WORDS)])
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            drawn = words[(WORDS * random.random((2, 7)) ** 2).astype(int)]
            text = " ".join(f"{' '.join(sentence)}." for sentence in drawn)
            row = {"id": f"image-{number}", "study": f"study-{number // 2}", "report": text}
            file.write(json.dumps(row) + "\n")
    return path


def timed(spent: Counter[str], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **named: Any) -> Any:
        began = time.process_time()
        found = function(*arguments, **named)
        spent[name] += time.process_time() - began
        return found

    return run


def work(folder: Path) -> None:
    """Score the reports in a folder and print the seconds of each step, as JSON."""

    def left_out(*_: object, **__: object) -> None:
        raise meteor.MeteorUnavailable("left out of this benchmark")

    spent: Counter[str] = Counter()
    for module, name in STEPS:
        setattr(module, name, timed(spent, name, getattr(module, name)))
    meteor.align = left_out  # type: ignore[assignment]
    request = Request(str(folder / "references.jsonl"))
    timed(spent, "all", score)(str(folder / "reports.jsonl"), request, folder / "out")
    print(json.dumps(spent))


def measured(folder: Path) -> tuple[dict[str, float], int]:
    """The seconds of each step, and the most RssAnon of the process, in bytes."""
    command = [sys.executable, "-m", "tests.benchmarks.score", str(folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    most = 0
    with subprocess.Popen(command, **pipes, text=True) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            for line in status.read_text().splitlines():
                if line.startswith("RssAnon:"):
                    most = max(most, 1024 * int(line.split()[1]))
            time.sleep(0.01)
        assert process.returncode == 0
        assert process.stdout is not None
        # Above it are lines of progress, if it took long.
        return json.loads(process.stdout.read().splitlines()[-1]), most


def main(sizes: tuple[int, ...]) -> None:
    times: list[dict[str, float]] = []
    peaks: list[int] = []
    for count in sizes:
        with tempfile.TemporaryDirectory() as name:
            write(Path(name, "references.jsonl"), count, 0)
            write(Path(name, "reports.jsonl"), count, 1)
            spent, most = measured(Path(name))
        print(f"{count:,} reports: {spent['all']:.1f} s, {most / 2**20:.0f} MiB", flush=True)
        times.append({step: 1e6 * seconds / count for step, seconds in spent.items()})
        peaks.append(most)
    print(f"{'microseconds for each report of':<32}{sizes[0]:>10,}{sizes[1]:>10,}     ratio")
    for step, one in times[0].items():
        print(f"{step:<32}{one:10.1f}{times[1][step]:10.1f}{times[1][step] / one:10.2f}")
    each = (peaks[1] - peaks[0]) / (sizes[1] - sizes[0])
    print(f"{each:.0f} bytes of memory for each further report")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        work(Path(sys.argv[1]))
    else:
        main(tuple(map(int, sys.argv[1:])) or (FEW, MANY))
