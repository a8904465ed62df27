"""Augmentation of the training images: small random movements and changes of contrast.

Images are never mirrored, since reports name left and right. What is drawn for an image depends on
its seed alone, by the same integer arithmetic as dropout, and is computed on the image's device.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from raymed.config import Config
from raymed.errors import UsageError
from raymed.image_tensors import Images, StudyImages
from raymed.model.dropout import RANDOM_BITS, uniform_bits
from raymed.model.side_by_side import seeds_of_images
from raymed.sections import AugmentationConfig

WHITE = 255.0


def check_augmentation(config: Config) -> None:
    """Check that images are only to be augmented where the whole encoder sees them in training.

    Raises:
        UsageError: The encoder's features are computed once; the message names the key.
    """
    trained = config.model.train_encoder
    for name, amplitude in config.augmentation.model_dump().items():
        if amplitude > 0 and trained != "all":
            raise UsageError(
                f"augmentation.{name}: {amplitude:g} changes the images of every epoch, but with "
                f"model.train_encoder={trained} their features are computed only once: set it to "
                "0, or model.train_encoder=all"
            )


def augment(images: Images, seeds: Tensor, config: AugmentationConfig) -> Images:
    """The images with `augment_pixels`, each by its own seed; features are left as they are.

    Args:
        images: Of B images or studies.
        seeds: int64 [B].
        config: The amplitudes.
    """
    if isinstance(images, Tensor):
        return augment_pixels(images, seeds, config)
    if isinstance(images, StudyImages) and isinstance(images.images, Tensor):
        of_images = seeds_of_images(seeds, images)
        assert of_images is not None
        return images.with_images(augment_pixels(images.images, of_images, config))
    return images


def augment_pixels(images: Tensor, seeds: Tensor, config: AugmentationConfig) -> Tensor:
    """Scale, rotate and shift images, and change their contrast.

    With draws u from -1 to 1, an image is scaled about its centre by 1 + u_1 ``scale``, rotated
    clockwise by u_2 ``rotation`` degrees, and shifted by u_3 ``shift`` sides to the right and u_4
    ``shift`` sides down, interpolated bilinearly and padded with black as the dataset's images are;
    then its grey values are multiplied by 1 + u_5 ``contrast``.

    Args:
        images: uint8 [B, H, H].
        seeds: int64 [B].
        config: The amplitudes.

    Returns:
        uint8 [B, H, H], the images themselves if all amplitudes are 0.
    """
    if not any(config.model_dump().values()):
        return images
    # Dropout uses the seeds themselves and those that follow.
    draws = uniform_bits(seeds - 1, 5).double() / 2 ** (RANDOM_BITS - 1) - 1
    u_1, u_2, u_3, u_4, u_5 = draws.unbind(dim=1)
    changed = images.float()
    if config.shift or config.rotation or config.scale:
        grid = _sources(
            1 + u_1 * config.scale,
            u_2 * math.radians(config.rotation),
            u_3 * config.shift,
            u_4 * config.shift,
            images.shape[1],
        )
        moved = F.grid_sample(changed.unsqueeze(1), grid, align_corners=False)
        changed = moved.squeeze(1)
    changed = changed * (1 + u_5 * config.contrast).float().view(-1, 1, 1)
    return changed.round().clamp(max=WHITE).to(torch.uint8)


def _sources(scale: Tensor, angle: Tensor, right: Tensor, down: Tensor, side: int) -> Tensor:
    """Where each pixel of the results comes from, as `grid_sample` takes it: [B, H, H, 2].

    x_in = R(-angle) (x_out - shift) / scale, in units of half a side from the centre. Element by
    element, not as a matrix product, whose rounding may depend on the size of the batch.

    Args:
        scale: [B].
        angle: [B], in radians.
        right: [B], in sides.
        down: [B], likewise.
        side: H.
    """
    cos, sin, right, down = (
        each.float().view(-1, 1, 1)
        for each in (angle.cos() / scale, angle.sin() / scale, 2 * right, 2 * down)
    )
    centres = (2 * torch.arange(side, device=scale.device) + 1) / side - 1
    x, y = centres.view(1, 1, -1) - right, centres.view(1, -1, 1) - down
    return torch.stack([cos * x + sin * y, cos * y - sin * x], dim=3)
