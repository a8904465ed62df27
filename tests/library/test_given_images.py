"""Images in memory are read as the files that have the same content, or refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raymed.data.images import read_image
from raymed.data.limits import MAX_PIXELS
from raymed.errors import UsageError
from raymed.library.given_images import ValueRange, read_given_image

SIZE = 24
RANDOM = np.random.default_rng(3)
GREY = RANDOM.integers(0, 256, (30, 20), dtype=np.uint8)
DEEP = RANDOM.integers(100, 40_000, (30, 20), dtype=np.uint16)


def read(given: Any, value_range: ValueRange | None = None) -> np.ndarray:
    return read_given_image(given, SIZE, value_range, "image")[1]


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_file_pillow_image_and_array_are_the_same_image(
    tmp_path: Path, channels: int | None
) -> None:
    shape = (30, 20) if channels is None else (30, 20, channels)
    array = RANDOM.integers(0, 256, shape, dtype=np.uint8)
    file = tmp_path / "film.png"
    Image.fromarray(array[:, :, 0] if channels == 1 else array).save(file)
    expected = read_image(file, SIZE)
    assert expected.std() > 10
    assert np.array_equal(read(str(file)), expected)
    assert np.array_equal(read(file), expected)
    assert np.array_equal(read(array), expected)
    with Image.open(file) as image:
        assert np.array_equal(read(image), expected)


def test_16_bits_are_stretched_by_file_by_pillow_and_by_minmax(tmp_path: Path) -> None:
    file = tmp_path / "film.png"
    Image.fromarray(DEEP).save(file)
    expected = read_image(file, SIZE)
    with Image.open(file) as image:
        assert np.array_equal(read(image), expected)
    for dtype in (np.uint16, np.int32, np.float32):
        assert np.array_equal(read(DEEP.astype(dtype), "minmax"), expected)


@pytest.mark.parametrize(
    ("array", "value_range"),
    [
        (GREY / 255, (0, 1)),
        ((GREY / 255).astype(np.float32), (0.0, 1.0)),
        (GREY.astype(np.float64) * 4 - 1000, (-1000, 20)),
        (GREY.astype(np.int64), (0, 255)),
        (GREY, (0, 255)),
        (GREY.astype(np.uint16) * 257, (0, 65535)),
    ],
)
def test_a_range_maps_values_to_grey_values(array: np.ndarray, value_range: ValueRange) -> None:
    assert np.array_equal(read(array, value_range), read(GREY))


def test_a_constant_array_is_black() -> None:
    assert not read(np.full((4, 4), 7.5), "minmax").any()


def test_orientation_and_white_is_zero_are_kept_and_the_image_is_unchanged(tmp_path: Path) -> None:
    turned, inverted = tmp_path / "turned.jpg", tmp_path / "inverted.tif"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(GREY).save(turned, exif=exif)
    Image.fromarray(DEEP).save(inverted, tiffinfo={262: 0})
    for file in (turned, inverted):
        with Image.open(file) as image:
            size, content = image.size, np.asarray(image).copy()
            assert np.array_equal(read(image), read(file))
            assert image.size == size
            assert np.array_equal(np.asarray(image), content)
    with Image.open(inverted) as image:
        upright = Image.fromarray(np.asarray(image))
    assert not np.array_equal(read(upright), read(inverted))


def test_names() -> None:
    assert read_given_image(GREY, SIZE, None, "images[3]")[0] == "images[3]"
    assert read_given_image(Image.fromarray(GREY), SIZE, None, "image")[0] == "image"


FLOATS = GREY / 255
NOT_FINITE = FLOATS.copy()
NOT_FINITE[3, 3] = np.nan


@pytest.mark.parametrize(
    ("given", "value_range", "words"),
    [
        (FLOATS, None, r"image: only uint8 .* float64 with values from 0 to 1: give value_range="),
        (DEEP, None, r"only uint8 arrays .* uint16 with values from"),
        (GREY.astype(np.int64), None, "only uint8 arrays"),
        (GREY > 100, None, "only uint8 arrays"),
        (FLOATS - 0.5, (0, 1), r"value_range=\(0, 1\) does not contain .* from -0.5 to 0.5"),
        (GREY.astype(float), (0, 1), r"does not contain all values .*\(numpy.clip\)"),
        (NOT_FINITE, (0, 1), r"not finite \(NaN"),
        (NOT_FINITE, "minmax", r"not finite \(NaN"),
        (FLOATS, (1, 0), r"value_range: must be 'minmax' or two numbers .* not \(1, 0\)"),
        (FLOATS, "full", "value_range: must be 'minmax'"),
        (FLOATS, 1, "value_range: must be 'minmax'"),
        (FLOATS, (0, np.inf), "value_range: must be 'minmax'"),
        (np.dstack([FLOATS] * 4), "minmax", "transparency"),
        (np.zeros((5, 30, 20), np.uint8), None, r"not \[5, 30, 20\]: give each image on its own"),
        (np.zeros((3, 30, 20), np.uint8), None, r"array.transpose\(1, 2, 0\)"),
        (np.zeros((2, 30, 20, 3), np.uint8), None, "give each image on its own, in a list"),
        (np.zeros(600, np.uint8), None, r"not \[600\]"),
        (np.zeros((0, 20), np.uint8), None, "it has no pixels"),
        (np.zeros((30, 20), complex), (0, 1), "must contain numbers, not complex128"),
        (np.full((30, 20), "a"), (0, 1), "must contain numbers"),
        (np.broadcast_to(np.uint8(0), (MAX_PIXELS, 2)), None, "too large"),
        (torch.zeros(30, 20), None, r"a numpy array, not torch\.Tensor"),
        (None, None, "a numpy array, not builtins.NoneType"),
        ("gone.png", None, "image: gone.png: no such image file; give a PNG"),
        (Path(__file__).parent, None, r"is a folder; give its files, such as sorted\("),
        (__file__, None, "test_given_images.py: not a PNG, JPEG, TIFF or DICOM image; give"),
    ],
)
def test_what_can_be_read_in_more_than_one_way_or_in_none_is_refused(
    given: Any, value_range: Any, words: str
) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        read(given, value_range)
    assert "\n" not in str(raised.value)


def test_a_truncated_pillow_image_is_named(tmp_path: Path) -> None:
    file = tmp_path / "half.png"
    Image.fromarray(RANDOM.integers(0, 256, (300, 300), dtype=np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:2000])
    with Image.open(file) as image, pytest.raises(UsageError, match="image: image cannot be deco"):
        read(image)
