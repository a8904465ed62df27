"""Images that a caller gives in memory or by path, read as a model reads them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from raymed.data.images import read_image, read_pillow_image
from raymed.data.limits import ImageError, refuse_bomb
from raymed.errors import UsageError

GivenImage = str | os.PathLike[str] | Image.Image | np.ndarray
"""A file (PNG, JPEG, TIFF or DICOM), a Pillow image, or an array [H, W] or [H, W, C] with C = 1
(grey), 3 (RGB) or 4 (RGBA)."""
ValueRange = tuple[float, float] | Literal["minmax"]
"""The values of an array that are black and white; ``minmax``: its least and its greatest."""

CHANNELS = (1, 3, 4)


def read_given_image(
    given: GivenImage, size: int, value_range: ValueRange | None, label: str
) -> tuple[str, np.ndarray]:
    """Read one image, scaled and padded as in training.

    Args:
        given: The image.
        size: Side of the result in pixels.
        value_range: The range of an array's values. Files and Pillow images have their own.
        label: What messages call the image, and its name if it is not a file.

    Returns:
        Its name, and its pixels, uint8 [size, size].

    Raises:
        UsageError: It cannot be read, or its values or its shape can be read in more than one way.
    """
    try:
        if isinstance(given, np.ndarray):
            return label, read_pillow_image(_from_array(given, value_range, label), size)
        if isinstance(given, Image.Image):
            name = Path(getattr(given, "filename", "") or label).name
            return name, read_pillow_image(given, size)
        if not isinstance(given, str | os.PathLike):
            raise UsageError(
                f"{label}: must be a file's path, a Pillow image or a numpy array, not "
                f"{type(given).__module__}.{type(given).__qualname__}"
            )
        return _read_file(Path(given), size, label)
    except ImageError as error:
        raise UsageError(f"{label}: {error}") from error


def _read_file(path: Path, size: int, label: str) -> tuple[str, np.ndarray]:
    if os.path.isdir(path):
        raise UsageError(
            f"{label}: {path} is a folder; give its files, such as "
            f'sorted(Path("{path}").glob("*.png"))'
        )
    try:
        return path.name, read_image(path, size)
    except ImageError as error:
        problem = str(error) if os.path.exists(path) else "no such image file"
        raise UsageError(
            f"{label}: {path}: {problem}; give a PNG, JPEG, TIFF or DICOM image"
        ) from error


def _from_array(array: np.ndarray, value_range: ValueRange | None, label: str) -> Image.Image:
    """The array as an 8-bit Pillow image."""
    _check_shape(array.shape, label)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    refuse_bomb(array.shape[1], array.shape[0])
    if array.dtype == np.uint8 and value_range is None:
        return Image.fromarray(array)
    if array.dtype.kind not in "biuf":
        raise UsageError(f"{label}: an array must contain numbers, not {array.dtype}")
    values = array.astype(np.float64)
    if not np.isfinite(values).all():
        raise UsageError(f"{label}: the array has values that are not finite (NaN or infinity)")
    low, high = _black_and_white(values, array.dtype, value_range, label)
    share = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return Image.fromarray(np.rint(255 * share).astype(np.uint8))


def _black_and_white(
    values: np.ndarray, dtype: Any, value_range: ValueRange | None, label: str
) -> tuple[float, float]:
    """The values that are black and white."""
    least, greatest = float(values.min()), float(values.max())
    found = f"{dtype} with values from {least:g} to {greatest:g}"
    if value_range is None:
        raise UsageError(
            f"{label}: only uint8 arrays say by themselves what is black (0) and white (255), and "
            f"this one is {found}: give value_range=(BLACK, WHITE), such as (0, 1), or "
            "value_range='minmax' to stretch each image from its least to its greatest value"
        )
    if value_range == "minmax":
        if values.ndim == 3 and values.shape[2] == 4:
            raise UsageError(
                f"{label}: value_range='minmax' would stretch the transparency of an RGBA image "
                "too: give (BLACK, WHITE), or an RGB image"
            )
        return least, greatest
    try:
        low, high = map(float, value_range)
    except (TypeError, ValueError):
        low = high = np.nan
    if not low < high or not np.isfinite([low, high]).all():
        raise UsageError(
            f"value_range: must be 'minmax' or two numbers (BLACK, WHITE), the second one greater, "
            f"not {value_range!r}"
        )
    if least < low or greatest > high:
        raise UsageError(
            f"{label}: value_range=({low:g}, {high:g}) does not contain all values of the array "
            f"({found}): give the right range, or clip the array first (numpy.clip)"
        )
    return low, high


def _check_shape(shape: Sequence[int], label: str) -> None:
    if len(shape) in (2, 3) and 0 not in shape and (len(shape) == 2 or shape[2] in CHANNELS):
        return
    advice = "give each image on its own, in a list"
    if len(shape) == 3 and shape[0] in CHANNELS:
        advice = "move the channels to the end (array.transpose(1, 2, 0))"
    if 0 in shape:
        advice = "it has no pixels"
    raise UsageError(
        f"{label}: an array must be [height, width] or [height, width, channels] with 1, 3 or 4 "
        f"channels, not {[*shape]}: {advice}"
    )
