"""The images of a study as one: their regions side by side, and the mean of their overall features.

Jing et al. (2018) give each image of a study a report of its own. Later papers read both views of
a study (R2Gen of Chen et al. 2020 on IU X-Ray): one report attends to the regions of all of them.
"""

import torch
from torch import Tensor, nn

from raymed.image_tensors import StudyImages
from raymed.model.dropout import uniform_bits

_STREAM = -2
"""Added to a study's seed: dropout draws from the seed itself and from those that follow, and
augmentation from the one before."""


class SideBySide(nn.Module):
    """Makes one image of each study's images i, to each of which the encoder was applied:

    v_(i,n) = v_n of image i + e_i,    f = mean_i f_i

    over the images that the study has. The embedding e_i of an image's position in its study is
    learned, and begins at 0: the regions of two images are then told apart only by what they show.

    Args:
        images: I, the most images that are read of a study.
        width: D, width of a region's features; None: no embedding, for systems that attend to no
            regions.
    """

    positions: nn.Parameter | None

    def __init__(self, images: int, width: int | None) -> None:
        super().__init__()
        positions = None if width is None else nn.Parameter(torch.zeros(images, width))
        self.register_parameter("positions", positions)

    def forward(self, v: Tensor, f: Tensor, images: StudyImages) -> tuple[Tensor, Tensor, Tensor]:
        """Visual and overall features of K images -> those of B studies, and which are present.

        Args:
            v: [K, N, D].
            f: [K, F].
            images: The images that these are the features of.

        Returns:
            v [B, I N, D], 0 where a study has no image; f [B, F]; and bool [B, I N], False there.
        """
        present, (size, most) = images.present, images.present.shape
        placed = _placed(v, images.places, size * most).view(size, most, *v.shape[1:])
        if self.positions is not None:
            placed = placed + self.positions.to(v.dtype).view(1, most, 1, -1)
            placed = placed * present.view(size, most, 1, 1)
        of_images = _placed(f, images.places, size * most).view(size, most, -1)
        mean = of_images.sum(dim=1) / present.sum(dim=1, keepdim=True)
        regions = present.repeat_interleave(v.shape[1], dim=1)
        return placed.flatten(1, 2), mean.to(f.dtype), regions


def _placed(x: Tensor, places: Tensor, count: int) -> Tensor:
    """x [K, ...] at its places of [count, ...], 0 at the others."""
    return x.new_zeros(count, *x.shape[1:]).index_copy(0, places, x)


def seeds_of_images(seeds: Tensor | None, images: StudyImages) -> Tensor | None:
    """A seed for each of K images, from the seeds [B] of their studies; None stays None."""
    if seeds is None:
        return None
    drawn = uniform_bits(seeds + _STREAM, images.present.shape[1])
    return drawn.flatten().index_select(0, images.places)
