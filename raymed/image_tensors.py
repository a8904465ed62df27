"""Images as a system reads them: pixels or features, of single images or of studies.

`raymed.data` makes them and `raymed.model` reads them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Features = tuple[Tensor, ...]
"""What frozen parts of the encoder computed for K images: the feature map [K, D, h, w] and, where
its hidden layers are frozen too, the last of them [K, F]."""
SingleImages = Tensor | Features
"""K images, uint8 greyscale [K, H, W]; or their features, computed by what is frozen of the
encoder, float16 where they come from the cache."""


@dataclass(frozen=True)
class StudyImages:
    """The images of B studies, of which each has from 1 to I: K in all.

    Attributes:
        images: The K images, study by study.
        places: int64 [K]: the place of each among the B I places of the batch, b I + i for the
            image at position i of study b.
        present: bool [B, I], False where a study has no image at that position.
    """

    images: SingleImages
    places: Tensor
    present: Tensor

    @classmethod
    def of(cls, images: SingleImages, counts: Tensor, most: int) -> "StudyImages":
        """Put together the images of studies.

        Args:
            images: The K images, study by study.
            counts: int64 [B], how many images each study has, from 1 to ``most``.
            most: I.
        """
        present = torch.arange(most) < counts.unsqueeze(1)
        return cls(images, present.flatten().nonzero().squeeze(1), present)

    def with_images(self, images: SingleImages) -> "StudyImages":
        """The same studies with other pixels or features of their images."""
        return replace(self, images=images)


Images = SingleImages | StudyImages
"""The images of B examples: B images, or those of B studies."""


def map_tensors(images: Images, function: Callable[[Tensor], Tensor]) -> Images:
    """The images with a function applied to each of their tensors, such as a copy to a device."""
    if isinstance(images, StudyImages):
        of_images = _mapped(images.images, function)
        return StudyImages(of_images, function(images.places), function(images.present))
    return _mapped(images, function)


def _mapped(images: SingleImages, function: Callable[[Tensor], Tensor]) -> SingleImages:
    return function(images) if isinstance(images, Tensor) else tuple(map(function, images))
