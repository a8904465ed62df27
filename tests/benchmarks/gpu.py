"""What a training step costs on a GPU, beside what the network alone costs there: images per second
of the real loop as a share of VGG-19's bare forward and backward pass in bfloat16 at the same batch
size (goal: 85 % at batch 64), a step with cached features, and generation; with one GPU and with
all. All ways are measured in turn, several times, and of each the quickest counts. On a machine
without a GPU the same code runs at a small size, so that it cannot rot; that is no result.

    python -m tests.benchmarks.gpu
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raymed import config as configuration
from raymed.config import Config
from raymed.generation import generate
from raymed.model.encoder import build_encoder
from raymed.model.precision import precision_context
from raymed.training.loop import train_step
from raymed.training.prefetch import prefetch_to_device
from raymed.training.setup import Setup, set_up
from raymed.training.worker import Worker
from tests.support.prepared import prepare_phantom
from tests.support.recording import Recorder

ON_GPU = torch.cuda.is_available()
BATCH, PIXELS, STUDIES, STEPS, ROUNDS = (64, 224, 1200, 12, 4) if ON_GPU else (2, 32, 20, 1, 1)
NETWORK = "vgg19" if ON_GPU else "vgg11"
GOAL = 0.85


def finished() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def bare(device: torch.device) -> Callable[[], None]:
    """Forward and backward passes of the network alone, on images that are there."""
    encoder = build_encoder(NETWORK).move_to(device, torch.bfloat16)
    images = torch.randint(0, 256, (BATCH, PIXELS, PIXELS), dtype=torch.uint8, device=device)

    def run() -> None:
        for _ in range(STEPS):
            encoder.zero_grad()
            with precision_context(torch.bfloat16, device):
                feature_map, hidden = encoder(images)
                loss = feature_map.float().mean() + hidden.float().mean()
            loss.backward()

    return run


def loop(run: Setup, worker: Worker) -> Callable[[], None]:
    """Steps of the training loop, from the mapped data on; with nothing read in between."""

    def steps() -> None:
        run.model.train()
        done = 0
        for epoch in range(1, STEPS + 1):
            order = run.config.training.batch_size, 0, epoch, worker.rank, worker.world
            for taught in prefetch_to_device(
                run.training.batches(*order), run.model, worker.device
            ):
                train_step(run, taught, worker.world)
                done += 1
                if done == STEPS:
                    return

    return steps


def generation(run: Setup, device: torch.device) -> Callable[[], None]:
    images = torch.zeros(BATCH, PIXELS, PIXELS, dtype=torch.uint8, device=device)

    def write() -> None:
        run.model.eval()
        generate(run.model, images, run.config.generation)

    return write


def quickest(ways: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Seconds of each way, once everything has been compiled and cached."""
    seconds = dict.fromkeys(ways, float("inf"))
    for number in range(ROUNDS + 1):
        for name, way in ways.items():
            finished()
            began = time.perf_counter()
            way()
            finished()
            if number or not ON_GPU:
                seconds[name] = min(seconds[name], time.perf_counter() - began)
    return seconds


def rank(number: int, world: int, file: str, folder: str) -> None:
    """One of several processes, each with its GPU, and a share of the batch for each."""
    device = torch.device("cuda", number) if ON_GPU else torch.device("cpu")
    if ON_GPU:
        torch.cuda.set_device(device)
    store = f"file://{folder}/rendezvous-{world}"
    dist.init_process_group(
        "nccl" if ON_GPU else "gloo", init_method=store, rank=number, world_size=world
    )
    worker = Worker(device, number, world)
    config = configuration.load(file).override({"training.batch_size": BATCH * world})
    run = set_up(config, Path(folder, f"world-{world}"), worker, Recorder())
    seconds = quickest({"step": loop(run, worker)})["step"]
    if number == 0:
        Path(folder, f"seconds-{world}").write_text(str(seconds))
    dist.destroy_process_group()


def main() -> None:
    if not ON_GPU:
        print("no CUDA device here: the same code at a small size; the figures are no result")
        torch.set_num_threads(1)
    device = torch.device("cuda", 0) if ON_GPU else torch.device("cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare_phantom(folder / "data", STUDIES, image_size=PIXELS)
        values: dict[str, Any] = {
            "data.path": str(folder / "data"),
            "model.encoder": NETWORK,
            "model.encoder_weights": "none",
            "training.batch_size": BATCH,
            "training.precision": "bfloat16",
        }
        config = Config().override(values)
        alone = Worker(device)
        run = set_up(config, folder / "run", alone, Recorder())
        frozen = set_up(
            config.override({"model.train_encoder": "none"}),
            folder / "frozen",
            alone,
            Recorder(),
        )
        seconds = quickest(
            {
                "network alone": bare(device),
                "training step": loop(run, alone),
                "step with cached features": loop(frozen, alone),
                "generation of a batch": generation(run, device),
            }
        )
        images = {way: BATCH * STEPS / value for way, value in seconds.items()}
        images["generation of a batch"] /= STEPS
        for way, value in images.items():
            print(f"{way:28s} {value:10,.1f} images/s")
        share = images["training step"] / images["network alone"]
        print(f"training step: {share:.0%} of {NETWORK} alone at batch {BATCH} (goal {GOAL:.0%})")
        (folder / "config.yaml").write_text(config.to_yaml())
        for world in sorted({1, torch.cuda.device_count() if ON_GPU else 2}):
            mp.spawn(rank, args=(world, str(folder / "config.yaml"), str(folder)), nprocs=world)
            each = float((folder / f"seconds-{world}").read_text())
            rate = BATCH * world * STEPS / each
            times = rate / images["training step"]
            print(f"{world} process(es): {rate:10,.1f} images/s, {times:.2f} x")


if __name__ == "__main__":
    main()
