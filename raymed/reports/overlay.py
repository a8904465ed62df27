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
    """Attention [I, h, w] over the regions of I images, interpolated over their pixels.

    Returns:
        float32 [I, height, width], from 0 to 1, relative to the strongest region of all.
    """
    relative = map(Image.fromarray, (alpha / alpha.max()).astype(np.float32))
    resized = (each.resize((width, height), Image.Resampling.BILINEAR) for each in relative)
    return np.stack([np.asarray(each) for each in resized])


def attention_strip(images: np.ndarray, alphas: Iterable[np.ndarray]) -> np.ndarray:
    """The images, then once for each sentence the images under the sentence's attention.

    Args:
        images: A study's images below each other, uint8 [I, H, W].
        alphas: The visual attention [I, h, w] of each of S sentences.

    Returns:
        uint8 [I * H, (1 + S) * W, 3].
    """
    grey = images[..., None].repeat(3, axis=3)
    panels = [COLOURS(smooth(alpha, *images.shape[1:]))[..., :3] * 255 for alpha in alphas]
    strips = np.concatenate([grey, *(_blended(grey, panel) for panel in panels)], axis=2)
    return np.concatenate(strips)


def _blended(grey: np.ndarray | np.floating, colour: np.ndarray) -> np.ndarray:
    blended: np.ndarray = (1 - OPACITY) * grey + OPACITY * colour
    return blended.round().astype(np.uint8)
