"""Attention laid over an image, pixel by pixel."""

import numpy as np
import pytest
from matplotlib import colormaps

from raymed.reports.overlay import OPACITY, attention_strip


@pytest.mark.parametrize("shape", [(6, 6), (7, 5), (12, 18)])
def test_colour_follows_attention(shape: tuple[int, int]) -> None:
    height, width = shape
    image = np.full(shape, 100, np.uint8)
    alphas = np.full((3, 3, 3), 0.05)
    for sentence, region in enumerate((0, 4, 8)):
        alphas[sentence].flat[region] = 0.6
    strip = attention_strip(image[None], alphas[:, None])
    assert strip.shape == (height, 4 * width, 3)
    assert strip.dtype == np.uint8
    first, *panels = strip.reshape(height, 4, width, 3).swapaxes(0, 1)
    assert (first == 100).all()
    # Between the regions' centres attention changes linearly, beyond them it stays the same.
    rows, columns = ((np.arange(size) + 0.5) / size * 3 - 0.5 for size in shape)
    for alpha, panel in zip(alphas, panels, strict=True):
        across = np.array([np.interp(columns, range(3), row) for row in alpha])
        smooth = np.array([np.interp(rows, range(3), column) for column in across.T]).T
        colours = 255 * colormaps["inferno"](smooth / alpha.max())[:, :, :3]
        expected = 100 * (1 - OPACITY) + OPACITY * colours
        assert panel == pytest.approx(expected, abs=2)


def test_an_image_without_sentences_is_alone() -> None:
    image = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert (attention_strip(image[None], []) == image[:, :, None]).all()
