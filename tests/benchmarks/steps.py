"""What a training step costs: in one process without Ray, on one and on two Ray Train workers, and
on two processes with DistributedDataParallel alone. Prints seconds per step, what Ray Train and DDP
add, and how many images per second the input pipeline gives by itself. All are measured in turn,
several times, in one run (some minutes on two cores), and of each the quickest epoch counts.

    python -m tests.benchmarks.steps
"""

import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.console import Console

from raymed import config as configuration
from raymed.config import Config
from raymed.data.batches import TokenisedSplit
from raymed.data.dataset import PreparedDataset
from raymed.data.vocabulary import Vocabulary
from raymed.launch.cluster import connected
from raymed.launch.run import run_training
from raymed.training.log import METRICS_FILE, read_metrics
from raymed.training.loop import train
from raymed.training.worker import Worker
from tests.support.prepared import prepare_phantom
from tests.support.recording import Recorder

STUDIES, PIXELS, BATCH = 400, 64, 16
EPOCHS, ROUNDS = 4, 3


def seconds_per_step(folder: Path) -> float:
    """Of the quickest epoch; validation and checkpoints are not in it."""
    rows = read_metrics(folder / METRICS_FILE)
    config = configuration.load(folder / "config.yaml")
    return min(config.training.batch_size / row["images_per_second"] for row in rows)


def plain(rank: int, world: int, file: str, folder: str) -> None:
    """The loop on plain torch processes, with DDP where there are two."""
    torch.set_num_threads(1)
    config = configuration.load(file)
    if world > 1:
        store = f"file://{folder}/rendezvous"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    train(config, Path(folder), Worker(torch.device("cpu"), rank, world), Recorder())
    if world > 1:
        dist.destroy_process_group()


def without_ray(config: Config, folder: Path, world: int) -> float:
    folder.mkdir()
    (folder / "config.yaml").write_text(config.to_yaml())
    mp.spawn(plain, args=(world, str(folder / "config.yaml"), str(folder)), nprocs=world)
    return seconds_per_step(folder)


def on_ray(config: Config, folder: Path, workers: int) -> float:
    run = {"launch.workers": workers, "run.folder": str(folder.parent), "run.name": folder.name}
    run_training(config.override(run), Console(quiet=True))
    return seconds_per_step(folder)


def pipeline(config: Config, size: int) -> float:
    """Images per second of the batches alone, mapped and tokenised as for training."""
    dataset = PreparedDataset.open(config.data.path)
    vocabulary = Vocabulary.most_frequent(dataset.words, dataset.tags, 1000)
    split = TokenisedSplit(dataset.split("train"), vocabulary, 12, 30)
    quickest = float("inf")
    for epoch in range(1, 4):
        began = time.perf_counter()
        for _ in split.batches(size, seed=0, epoch=epoch):
            pass
        quickest = min(quickest, time.perf_counter() - began)
    return len(split) / quickest


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in (PIXELS, 224):
            prepare_phantom(folder / f"data-{size}", STUDIES, image_size=size)
        config = Config().override(
            {
                "data.path": str(folder / f"data-{PIXELS}"),
                "data.validation_images": 1,
                "model.encoder": "small",
                "model.encoder_weights": "none",
                "training.epochs": EPOCHS,
                "training.batch_size": BATCH,
            }
        )
        half = config.override({"training.batch_size": BATCH // 2})
        ways = {
            f"1 process, {BATCH} images": lambda at: without_ray(config, at, 1),
            f"1 Ray Train worker, {BATCH} images": lambda at: on_ray(config, at, 1),
            f"1 process, {BATCH // 2} images": lambda at: without_ray(half, at, 1),
            f"2 processes with DDP, {BATCH // 2} images each": lambda at: without_ray(
                config, at, 2
            ),
            f"2 Ray Train workers, {BATCH // 2} images each": lambda at: on_ray(config, at, 2),
        }
        best = dict.fromkeys(ways, float("inf"))
        with connected(None):
            for number in range(ROUNDS):
                for place, (way, measure) in enumerate(ways.items()):
                    best[way] = min(best[way], measure(folder / f"{number}-{place}"))
        for way, seconds in best.items():
            print(f"{way}: {1000 * seconds:.1f} ms a step")
        one, ray_one, halved, ddp, ray_two = best.values()
        print(f"Ray Train adds to a step of one worker: {ray_one / one - 1:+.1%}")
        print(f"Ray Train adds to a step of two workers: {ray_two / ddp - 1:+.1%}")
        print(
            f"DDP on the other core adds to a step of {BATCH // 2} images: {ddp / halved - 1:+.1%}"
        )
        for size in (PIXELS, 224):
            at = config.override({"data.path": str(folder / f"data-{size}")})
            print(f"input pipeline alone, {size} pixels: {pipeline(at, BATCH):,.0f} images/s")


if __name__ == "__main__":
    main()
