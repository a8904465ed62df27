"""Augmentation, against plain loops over pixels that look up where each comes from."""

import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from raymed.config import Config
from raymed.errors import UsageError
from raymed.sections import AugmentationConfig
from raymed.training.augment import augment
from raymed.training.checkpoint import MODEL_FILE, latest
from raymed.training.errors import Interrupted
from raymed.training.loop import train
from raymed.training.setup import check
from raymed.training.worker import Worker
from tests.support.metric_rows import untimed
from tests.support.recording import Recorder
from tests.support.splitmix import draws

ALONE = Worker(torch.device("cpu"))
SIDE = 12
SEEDS = torch.tensor([11, 2**61, 5])
ALL = AugmentationConfig(shift=0.2, rotation=30, scale=0.3, contrast=0.4)


@pytest.fixture
def images() -> Tensor:
    """Bright enough for the contrast to reach white."""
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, SIDE, SIDE), generator=random).to(torch.uint8)


def by_hand(image: list[list[int]], seed: int, config: AugmentationConfig) -> list[list[float]]:
    u = [2 * draw - 1 for draw in draws(seed - 1, 5)]
    factor, angle = 1 + u[0] * config.scale, math.radians(u[1] * config.rotation)
    right, down = (each * config.shift * SIDE for each in u[2:4])
    centre = (SIDE - 1) / 2

    def pixel(row: int, column: int) -> float:
        inside = 0 <= row < SIDE and 0 <= column < SIDE
        return image[row][column] if inside else 0.0

    def value(row: int, column: int) -> float:
        x, y = column - right - centre, row - down - centre
        # Back by the angle: clockwise on a screen, whose y points down, is from x to y.
        back_x = (math.cos(angle) * x + math.sin(angle) * y) / factor + centre
        back_y = (-math.sin(angle) * x + math.cos(angle) * y) / factor + centre
        left, top = math.floor(back_x), math.floor(back_y)
        across, along = back_x - left, back_y - top
        return sum(
            weight_y * weight_x * pixel(r, c)
            for r, weight_y in ((top, 1 - along), (top + 1, along))
            for c, weight_x in ((left, 1 - across), (left + 1, across))
        )

    contrast = 1 + u[4] * config.contrast
    return [
        [min(255.0, contrast * value(row, column)) for column in range(SIDE)] for row in range(SIDE)
    ]


@pytest.mark.parametrize(
    "config",
    [
        ALL,
        AugmentationConfig(shift=0.2),
        AugmentationConfig(rotation=30),
        AugmentationConfig(scale=0.3),
        AugmentationConfig(contrast=0.4),
    ],
)
def test_pixels_come_from_where_plain_loops_look(
    images: Tensor, config: AugmentationConfig
) -> None:
    found = augment(images, SEEDS, config)
    assert (found.dtype, found.shape) == (torch.uint8, images.shape)
    pairs = zip(images.tolist(), SEEDS.tolist(), strict=True)
    expected = torch.tensor([by_hand(image, seed, config) for image, seed in pairs])
    # Rounded, and of float32 coordinates.
    assert (found - expected).abs().max() < 0.51
    assert all((found[i] != images[i]).any() for i in range(3))


def test_nothing_changes_without_amplitudes(images: Tensor) -> None:
    assert augment(images, SEEDS, AugmentationConfig()) is images
    still = AugmentationConfig(shift=1e-9, rotation=1e-9, scale=1e-9, contrast=1e-9)
    assert torch.equal(augment(images, SEEDS, still), images)


def test_an_image_does_not_depend_on_its_batch(images: Tensor) -> None:
    whole = augment(images, SEEDS, ALL)
    for picked in ([0], [2, 1], [1, 1, 0, 2, 1, 0, 2]):
        assert torch.equal(augment(images[picked], SEEDS[picked], ALL), whole[picked])


@pytest.fixture
def augmented(tiny: Config) -> Config:
    amplitudes = ALL.model_dump().items()
    settings = {f"augmentation.{name}": amplitude for name, amplitude in amplitudes}
    return tiny.override({"training.epochs": 2} | settings)


def last_weights(folder: Path) -> dict[str, Tensor]:
    last = latest(folder)
    assert last is not None
    return safetensors.torch.load_file(last / MODEL_FILE)


def test_a_resumed_run_ends_where_the_uninterrupted_one_ends(
    augmented: Config, tmp_path: Path
) -> None:
    whole, recorder, plain = Recorder(), Recorder(), Recorder()
    train(augmented, tmp_path / "whole", ALONE, whole)
    recorder.at_step = lambda status: (status.epoch, status.done) == (2, 2)
    with pytest.raises(Interrupted):
        train(augmented, tmp_path / "run", ALONE, recorder)
    torch.manual_seed(99)
    recorder.ends, recorder.at_step = False, lambda _: False
    train(augmented, tmp_path / "run", ALONE, recorder)
    assert untimed(recorder.rows) == untimed(whole.rows)
    ours, expected = last_weights(tmp_path / "run"), last_weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    still = augmented.override(dict.fromkeys(_keys(), 0.0))
    train(still, tmp_path / "plain", ALONE, plain)
    assert plain.rows[0]["loss"] != whole.rows[0]["loss"]


def _keys() -> list[str]:
    return [f"augmentation.{name}" for name in AugmentationConfig.model_fields]


@pytest.mark.parametrize("key", _keys())
@pytest.mark.parametrize("trained", ["none", "hidden"])
def test_it_is_refused_where_features_are_computed_once(
    tiny: Config, key: str, trained: str
) -> None:
    with pytest.raises(UsageError, match=f"{key}: 0.1 .* model.train_encoder={trained}"):
        check(tiny.override({key: 0.1, "model.train_encoder": trained}))
    check(tiny.override({key: 0.1}))
