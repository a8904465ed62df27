"""The image encoder: VGG up to its last convolution gives the visual features v_n.

Jing et al. (2018), sections 3.2 and 4.2: VGG-19 (Simonyan and Zisserman 2015), whose last
convolution yields 14 x 14 x 512 for an image of 224 x 224, and whose fully connected layers
become the tag classifier (`raymed.model.tags`).
"""

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from raymed.errors import UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SMALL_WIDTHS = (32, 64, 128)


class Encoder(nn.Module):
    """Images to visual features.

    Args:
        convolutions: all of them, without the last pooling.
        width: D, the width of a region's feature vector.
        mean, std: of each input channel, for pixels scaled to 0..1; their number is the number of
            channels the grey value is copied to.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        convolutions: nn.Module,
        width: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.convolutions = convolutions
        self.width = width
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Greyscale uint8 [B, H, W] -> feature map [B, D, h, w], h = H/16 (VGG) or H/8 (small)."""
        grey = images.unsqueeze(1).to(self.mean.dtype) / 255
        features: Tensor = self.convolutions((grey - self.mean) / self.std)
        return features


class Backbone(NamedTuple):
    """A network cut in two: the encoder, and the layers that become the tag classifier."""

    encoder: Encoder
    pool: nn.Module
    fully_connected: tuple[nn.Linear, nn.Linear]


def regions(feature_map: Tensor) -> Tensor:
    """Feature map [B, D, h, w] -> visual features v_n [B, N, D], N = h w in row-major order."""
    return feature_map.flatten(2).transpose(1, 2)


def build_backbone(name: str, weights: str = "none") -> Backbone:
    """A network by name: a torchvision VGG, or ``small`` for images of about 64 pixels.

    Args:
        name: ``vgg11``, ``vgg13``, ``vgg16``, ``vgg19`` or ``small``.
        weights: ``imagenet``, ``none`` or a file of weights of that network.

    Raises:
        UsageError: the weights cannot be downloaded, read, or are another network's.
    """
    check_weights(name, weights)
    if name == "small":
        return _small()
    network = getattr(torchvision.models, name)(weights=None)
    if weights == "imagenet":
        network.load_state_dict(_downloaded(name))
    elif weights != "none":
        _load_file(network, name, weights)
    first, second = network.classifier[0], network.classifier[3]
    encoder = Encoder(network.features[:-1], 512, IMAGENET_MEAN, IMAGENET_STD)
    pool = nn.Sequential(network.features[-1], network.avgpool)
    return Backbone(encoder, pool, (first, second))


def check_weights(name: str, weights: str) -> None:
    """See that there can be such weights, before any process is started to load them.

    Raises:
        UsageError: there is no such file, or the network has no weights to load.
    """
    if name == "small" and weights != "none":
        raise UsageError(
            f"model.encoder_weights: the small encoder has no {weights!r} weights; set it to none"
        )
    if weights not in ("imagenet", "none") and not Path(weights).is_file():
        raise UsageError(
            f"model.encoder_weights: {weights}: no such file; give imagenet, none or a file of "
            f"torchvision {name} weights"
        )


def _small() -> Backbone:
    # The first convolution halves the image: at full size a narrow network spends its time on the
    # pixels of one grey channel.
    stages: list[nn.Module] = [nn.Conv2d(1, SMALL_WIDTHS[0], 5, stride=2, padding=2)]
    for channels, width in pairwise((*SMALL_WIDTHS, 0)):
        # Group norm, unlike batch norm, keeps an image's features free of its batch's others.
        stages += [nn.GroupNorm(8, channels), nn.ReLU(inplace=True)]
        if width:
            stages += [nn.MaxPool2d(2), nn.Conv2d(channels, width, 3, padding=1)]
    encoder = Encoder(nn.Sequential(*stages), channels, mean=(0.5,), std=(0.25,))
    hidden = 2 * channels
    layers = nn.Linear(channels * 4, hidden), nn.Linear(hidden, hidden)
    for layer in (*stages, *layers):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            # As in torchvision's VGG; torch's default leaves hardly a signal after five layers.
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return Backbone(encoder, nn.AdaptiveMaxPool2d(2), layers)


def _downloaded(name: str) -> dict[str, Tensor]:
    entry = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    try:
        state: dict[str, Tensor] = entry.get_state_dict(progress=False, check_hash=True)
    # torch.hub raises a RuntimeError where the hash is not that of the file wanted.
    except (OSError, RuntimeError) as error:
        raise UsageError(
            f"model.encoder_weights: the ImageNet weights of {name} could not be downloaded "
            f"from {entry.url} ({error}). Fetch that file where there is a network and set "
            "model.encoder_weights=FILE, or set model.encoder_weights=none to start untrained"
        ) from None
    return state


def _load_file(network: nn.Module, name: str, file: str) -> None:
    path = Path(file)
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    # torch and safetensors raise a dozen kinds for a file that is not theirs
    except Exception as error:
        raise UsageError(
            f"model.encoder_weights: {file}: not weights of torchvision's {name}: {error}"
        ) from None
