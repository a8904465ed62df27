"""A training step with VGG-19 in the loop against one with a frozen encoder's cached features, at
the default sizes. Prints seconds per step and per epoch of so many images, measured in turn in one
run, and how many times less the cached features cost.

    python -m tests.benchmarks.features
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from raymed.config import Config
from raymed.data import features as files
from raymed.data.batches import IGNORED, Batch
from raymed.data.features import SplitFeatures
from raymed.model.encoder import build_encoder
from raymed.model.encoder_shapes import grid, widths
from raymed.model.system import System
from raymed.model.systems import build_system
from raymed.tokens import END, PAD, START
from raymed.training.loss import loss_terms
from raymed.training.optimizer import build_optimizer

IMAGES, SIZE, VOCABULARY, TAGS = 64, 224, 1004, 572
MOST_SENTENCES, MOST_WORDS, SEED = 12, 30, 437
EPOCH_IMAGES, ROUNDS = 6_470, 5
"""Of IU X-Ray's training split; steps of each kind, of which the quickest counts."""


def reports_like_iu_xray(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Word ids and stops of random reports, as long and as uneven as IU X-Ray's.

    Its 3,927 reports have 5.7 ±2.0 sentences of 6.5 ±3.7 words; of 16 of them, the longest report
    has 10 sentences and the longest sentence 22 words, in the mean. So it is with these 16.
    """
    random = np.random.default_rng(SEED)
    counts = random.normal(5.7, 2.1, size).round().clip(1, MOST_SENTENCES).astype(int)
    words = random.lognormal(1.72, 0.56, (size, max(counts))).round().clip(1, MOST_WORDS)
    words[np.arange(max(counts)) >= counts[:, None]] = 0
    reports = torch.full((size, max(counts), int(words.max()) + 2), PAD)
    stops = torch.full((size, max(counts)), IGNORED)
    for image, sentence in zip(*words.nonzero(), strict=True):
        length = int(words[image, sentence])
        reports[image, sentence, : length + 2] = torch.tensor(
            [START, *random.integers(4, VOCABULARY, length), END]
        )
        stops[image, sentence] = int(sentence + 1 == counts[image])
    return reports, stops


def batch_of(images: object, reports: torch.Tensor, stops: torch.Tensor) -> Batch:
    size = len(reports)
    return Batch(
        images=images,  # type: ignore[arg-type]
        reports=reports,
        stops=stops,
        tags=torch.eye(TAGS)[torch.randint(TAGS, (size,))],
        weights=torch.full((size,), 1 / size),
        seeds=torch.randint(2**62, (size,)),
        rows=torch.arange(size),
    )


def take_step(
    model: System,
    optimizer: torch.optim.Optimizer,
    source: Callable[[], object],
    texts: tuple[torch.Tensor, torch.Tensor],
    config: Config,
) -> None:
    """As in `raymed.training.loop`, from fetching the batch on."""
    batch = batch_of(source(), *texts)
    passages = model.passages(batch.reports)
    losses = loss_terms(model(batch.images, passages, batch.seeds), batch)
    loss = (losses.total(config.loss) * batch.weights).sum()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.clip_norm)
    optimizer.step()


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = Config()
    size = config.training.batch_size
    texts = reports_like_iu_xray(size)
    pixels = torch.randint(0, 256, (IMAGES, SIZE, SIZE), dtype=torch.uint8)
    side, (depth, width) = grid("vgg19", SIZE), widths("vgg19")
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        features = SplitFeatures(Path(folder), "train", IMAGES, (depth, side, side), width)
        for number in range(len(features.files)):
            count = len(features.rows_of_file(number))
            maps = random.random((count, depth, side, side), np.float32).astype(np.float16)
            hidden = random.random((count, width), np.float32).astype(np.float16)
            features.write(number, [(maps, hidden)])

        def cached() -> object:
            feature_map, hidden = features.rows(random.integers(IMAGES, size=size))
            return torch.from_numpy(feature_map), torch.from_numpy(hidden)

        def images() -> object:
            return pixels[random.integers(IMAGES, size=size)]

        steps: dict[str, Callable[[], None]] = {}
        for name, trained, source in (
            ("VGG-19 in the loop, trained", "all", images),
            ("VGG-19 in the loop, frozen", "none", images),
            ("features cached", "none", cached),
        ):
            model_config = config.model.model_copy(update={"train_encoder": trained})
            encoder = None if source is cached else build_encoder("vgg19")
            model = build_system(model_config, TAGS, VOCABULARY, encoder).train()
            optimizer = build_optimizer(model, config.training)
            steps[name] = partial(take_step, model, optimizer, source, texts, config)
        seconds = dict.fromkeys(steps, float("inf"))
        for _ in range(ROUNDS):
            for name, step in steps.items():
                began = time.perf_counter()
                step()
                seconds[name] = min(seconds[name], time.perf_counter() - began)
        fastest = seconds["features cached"]
        print(f"{files.FILE_ROWS} images a file, {features.row_bytes:,} bytes an image")
        for name, value in seconds.items():
            epoch = value * EPOCH_IMAGES / size
            print(f"{name:28s} {value:8.3f} s/step {epoch:10.0f} s/epoch {value / fastest:7.1f} x")


if __name__ == "__main__":
    main()
