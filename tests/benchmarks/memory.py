"""Peak memory of each command's work at 1x and 10x the data, and bytes for each further image.

    python -m tests.benchmarks.memory [images]

Every report differs from every other. What is measured is RssAnon, the memory that is a process'
own: pages of mapped files, which the kernel drops when it needs room, are not in it. Images have
16 x 16 pixels, so that ten times as many are quickly made and read. The smaller number is such that
it fills what has a bound of its own: buffers, and what the allocators of PyTorch and Arrow keep.
At the end it is timed how long the nearest of images of 224 pixels are searched for, at two sizes.
It takes some six minutes on two free cores.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.data.examples import Example
from raymed.evaluation import baseline_scores, evaluate
from raymed.figures import abnormal_rows
from raymed.metrics.baselines import BlockMeans, nearest
from raymed.training.checkpoint import Checkpoint
from raymed.training.loop import train
from raymed.training.worker import Worker
from raymed.tuning.sweep import check_sweep
from tests.support.prepared import prepare_examples
from tests.support.recording import Recorder

IMAGES, SIDE = 6_000, 16
PARTS = {
    "fill the cache": "opening all splits for the first time",
    "train": "an epoch, with validation on 100 images",
    "tune": "the driver's part: its checks and the baselines' scores",
    "evaluate": "the test split, METEOR's Python side included",
    "report": "the baselines' scores and the images to show",
}


def examples(count: int) -> Iterator[Example]:
    """Two images to a study of five sentences of seven words."""
    random = np.random.default_rng(0)
    words = np.array([f"word{chr(97 + i // 26 % 26)}{chr(97 + i % 26)}" for i in range(650)])
    for number in range(count):
        if number % 2 == 0:
            drawn = words[(650 * random.random((5, 7)) ** 2).astype(int)]
            report = ". ".join(" ".join(sentence) for sentence in drawn)
        pixels = random.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
        tags = tuple(f"tag {i}" for i in random.integers(0, 1000, 2))
        yield Example(f"image-{number:07}", f"study-{number // 2:07}", pixels, report, tags)


def settings(data: Path) -> Config:
    return Config().override(
        {
            "data.path": str(data),
            "data.validation_images": 100,
            "model.encoder": "small",
            "model.encoder_weights": "none",
            "model.hidden_size": 8,
            "model.embedding_size": 8,
            "generation.max_sentences": 5,
            "generation.max_words": 7,
            "training.epochs": 1,
            "training.batch_size": 100,
            "tune.space": {"loss.tag": {"log_uniform": [0.1, 10]}},
        }
    )


def work(part: str, data: Path, folder: Path) -> None:
    """What one process is started for."""
    torch.set_num_threads(1)
    config = settings(data)
    dataset = PreparedDataset.open(data)
    if part == "fill the cache":
        for split in dataset.info.counts:
            dataset.split(split)
    elif part == "train":
        train(config, folder, Worker(torch.device("cpu")), Recorder())
    elif part == "tune":
        baseline_scores(check_sweep(config), "val", None)
    elif part == "evaluate":
        few = config.override({"training.batch_size": 20})
        evaluate(Checkpoint.open(folder), few, "test", folder / "test")
    else:
        baseline_scores(dataset, "val", None)
        abnormal_rows(dataset.split("val"))


def peak(part: str, data: Path, folder: Path) -> tuple[int, float]:
    """The most RssAnon of a process that does a part, in bytes, and the seconds that it takes."""
    command = [sys.executable, "-m", "tests.benchmarks.memory", part, str(data), str(folder)]
    most, began = 0, time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            for line in status.read_text().splitlines():
                if line.startswith("RssAnon:"):
                    most = max(most, 1024 * int(line.split()[1]))
            time.sleep(0.005)
    assert process.returncode == 0, part
    return most, time.monotonic() - began


class Noise:
    """Images of 224 pixels."""

    def __init__(self, count: int, seed: int) -> None:
        self._count = count
        self._some = np.random.default_rng(seed).integers(0, 256, (256, 224, 224), np.uint8)

    def __len__(self) -> int:
        return self._count

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        return self._some[rows % 256]


def time_nearest(queries: int, few: int, many: int) -> None:
    seconds = []
    for count in (few, many):
        began = time.monotonic()
        nearest(BlockMeans(Noise(count, 0)), BlockMeans(Noise(queries, 1)), queries)
        seconds.append(time.monotonic() - began)
        print(f"nearest of {queries:,} among {count:,}: {seconds[-1]:.1f} s", flush=True)
    each = (seconds[1] - seconds[0]) / (many - few)
    print(f"so among 300,000 about {seconds[1] + each * (300_000 - many):.0f} s")


def main() -> None:
    images = int(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    print(f"{len(os.sched_getaffinity(0))} processors, images of {SIDE} x {SIDE} pixels")
    peaks: dict[tuple[str, int], int] = {}
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        for times in (1, 10):
            data, folder = Path(name, f"data-{times}"), Path(name, f"run-{times}")
            prepare_examples(examples(times * images), data, image_size=SIDE)
            counts = PreparedDataset.open(data).info.counts
            print(", ".join(f"{count:,} {split}" for split, count in counts.items()), flush=True)
            for part in PARTS:
                peaks[part, times], seconds = peak(part, data, folder)
                mib = peaks[part, times] / 2**20
                print(f"  {part:<14} {mib:6.1f} MiB, {seconds:5.1f} s", flush=True)
    for part, what in PARTS.items():
        each = (peaks[part, 10] - peaks[part, 1]) / (9 * images)
        print(f"{part:<14} {each:8.0f} bytes for each further image ({what})")
    time_nearest(5_000, 2_048, 8_192)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        work(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
