"""Visual attention laid over an image, in the one colour scale of all figures, pages and logs."""

from collections.abc import Iterable

import numpy as np
from matplotlib import colormaps
from PIL import Image

COLOURS = colormaps["inferno"]
OPACITY = 0.45
"""Of the attention over the image, which must stay legible where nothing was attended to."""


def colours(count: int) -> np.ndarray:
    """The colours from no attention to the strongest, uint8 [count, 3]."""
    scale: np.ndarray = COLOURS(np.linspace(0, 1, count), bytes=True)[:, :3]
    return scale


def legend(count: int) -> np.ndarray:
    """The same as seen over a mid-grey image, uint8 [count, 3]."""
    return _blended(np.float64(127.5), colours(count))


def smooth(alpha: np.ndarray, height: int, width: int) -> np.ndarray:
    """Attention [h, w] over the regions, interpolated over pixels.

    Returns:
        float32 [height, width], from 0 to 1, relative to the strongest region.
    """
    relative = Image.fromarray((alpha / alpha.max()).astype(np.float32))
    return np.asarray(relative.resize((width, height), Image.Resampling.BILINEAR))


def attention_strip(image: np.ndarray, alphas: Iterable[np.ndarray]) -> np.ndarray:
    """The image, then once for each sentence the image under the sentence's attention.

    Args:
        image: uint8 [H, W].
        alphas: The visual attention [h, w] of each of S sentences.

    Returns:
        uint8 [H, (1 + S) * W, 3].
    """
    grey = image[:, :, None].repeat(3, axis=2)
    panels = [COLOURS(smooth(alpha, *image.shape))[:, :, :3] * 255 for alpha in alphas]
    return np.concatenate([grey, *(_blended(grey, panel) for panel in panels)], axis=1)


def _blended(grey: np.ndarray | np.floating, colour: np.ndarray) -> np.ndarray:
    blended: np.ndarray = (1 - OPACITY) * grey + OPACITY * colour
    return blended.round().astype(np.uint8)
