"""The image encoder: VGG up to its last hidden layer, and the visual features v_n within it.

Jing et al. (2018), sections 3.2 and 4.2: VGG-19 (Simonyan and Zisserman 2015), whose last
convolution yields 14 x 14 x 512 for an image of 224 x 224, and whose fully connected layers
become the tag classifier's (its output layer is in `raymed.model.tags`).
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Self

import safetensors.torch
import torch
from torch import Tensor, nn

from raymed.errors import UsageError
from raymed.model.dropout import SeededDropout
from raymed.storage import as_path, local_copy

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SMALL_WIDTHS = (32, 64, 128)

Features = tuple[Tensor, Tensor]
"""The encoder's output for B images: feature map [B, D, h, w], last hidden layer [B, F]."""
Images = Tensor | Features
"""B images, uint8 [B, H, W]; or their features, computed by a frozen encoder."""


class Encoder(nn.Module):
    """Maps images to features: the part of a network that has pretrained weights.

    Args:
        convolutions: All convolutional layers, without the last pooling.
        pool: Pools a feature map to the hidden layers' input size.
        hidden: The two hidden layers.
        mean: Mean of each input channel, for pixels scaled to 0..1. The grey value is copied to as
            many channels as there are means.
        std: Standard deviation of each input channel, likewise.
        dropout: Rate between the hidden layers, as in VGG.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        convolutions: nn.Module,
        pool: nn.Module,
        hidden: tuple[nn.Linear, nn.Linear],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        dropout: float,
    ) -> None:
        super().__init__()
        self.convolutions = convolutions
        self.pool = pool
        self.hidden = nn.ModuleList(hidden)
        self.dropout = SeededDropout(dropout)
        # On the CPU even while the weights are on the meta device (`encoder_from`).
        for name, values in (("mean", mean), ("std", std)):
            channels = torch.tensor(values, device="cpu").view(1, -1, 1, 1)
            self.register_buffer(name, channels, persistent=False)

    def move_to(self, device: torch.device, precision: torch.dtype) -> Self:
        """Move to a device, to compute there in ``precision``.

        On GPUs and in bfloat16 the convolutions are faster in channels-last memory format; in
        float32 a CPU is slower with it (`python -m tests.benchmarks.precision`).
        """
        if device.type == "cuda" or precision == torch.bfloat16:
            self.convolutions.to(memory_format=torch.channels_last)
        return self.to(device)

    def forward(self, images: Tensor, seeds: Tensor | None = None) -> Features:
        """Greyscale uint8 [B, H, W] -> feature map and last hidden layer, before its dropout.

        The map's h is H/16 (VGG) or H/8 (small). ``seeds`` [B] determine the dropout masks.
        """
        grey = images.unsqueeze(1).to(self.mean.dtype) / 255
        feature_map: Tensor = self.convolutions((grey - self.mean) / self.std)
        first, last = self.hidden
        x = torch.relu(first(self.pool(feature_map).flatten(1)))
        return feature_map, torch.relu(last(self.dropout(x, seeds)))


def regions(feature_map: Tensor) -> Tensor:
    """Feature map [B, D, h, w] -> visual features v_n [B, N, D], N = h w in row-major order."""
    return feature_map.flatten(2).transpose(1, 2)


def widths(name: str) -> tuple[int, int]:
    """D and F of an encoder: the widths of a region's features and of its last hidden layer."""
    return (SMALL_WIDTHS[-1], 2 * SMALL_WIDTHS[-1]) if name == "small" else (512, 4096)


def grid(name: str, image_size: int) -> int:
    """h = w: the number of regions along a side of the image."""
    return -(-image_size // 2) // 4 if name == "small" else image_size // 16


def build_encoder(name: str, weights: str = "none", dropout: float = 0.0) -> Encoder:
    """An encoder by name: a torchvision VGG, or ``small`` for images of about 64 pixels.

    Args:
        name: ``vgg11``, ``vgg13``, ``vgg16``, ``vgg19`` or ``small``.
        weights: ``imagenet``, ``none`` or a file with weights of that network.
        dropout: Rate between the hidden layers.

    Raises:
        UsageError: The weights cannot be downloaded or read, or belong to another network.
    """
    check_weights(name, weights)
    if name == "small":
        return _small(dropout)
    # Importing it takes two seconds, which every process would pay at its start, VGG or not.
    from torchvision import models

    network = getattr(models, name)(weights=None)
    if weights == "imagenet":
        network.load_state_dict(_downloaded(models.get_model_weights(name).IMAGENET1K_V1))
    elif weights != "none":
        _load_file(network, name, weights)
    hidden = network.classifier[0], network.classifier[3]
    pool = nn.Sequential(network.features[-1], network.avgpool)
    return Encoder(network.features[:-1], pool, hidden, IMAGENET_MEAN, IMAGENET_STD, dropout)


def encoder_from(name: str, state: Mapping[str, Tensor], dropout: float = 0.0) -> Encoder:
    """The encoder of that name with the weights of an encoder's ``state_dict()``.

    Raises:
        RuntimeError: The weights belong to another network.
    """
    # Initialising 140 million weights, only to replace them, would take seconds.
    with torch.device("meta"):
        encoder = build_encoder(name, dropout=dropout)
    dtype = torch.get_default_dtype()
    # Copied, because tensors in a mapped file are not aligned as the allocator's are, and matrix
    # products then round differently: a resumed run would drift from an uninterrupted one.
    copies = {key: value.to(dtype, copy=True) for key, value in state.items()}
    encoder.load_state_dict(copies, assign=True)
    return encoder


def check_weights(name: str, weights: str) -> None:
    """Check that such weights can exist, before any process is started to load them.

    Raises:
        UsageError: There is no such file, or the network has no weights to load.
    """
    if name == "small" and weights != "none":
        raise UsageError(
            f"model.encoder_weights: the small encoder has no {weights!r} weights; set it to none "
            "or to the folder of a run that trained it"
        )
    if weights not in ("imagenet", "none") and not as_path(weights).is_file():
        raise UsageError(
            f"model.encoder_weights: {weights}: no such file; use imagenet, none, a file of "
            f"torchvision {name} weights, or the folder of a run with that encoder"
        )


def _small(dropout: float) -> Encoder:
    # The first convolution halves the image: at full resolution a narrow network would spend most
    # of its time in its first layer.
    stages: list[nn.Module] = [nn.Conv2d(1, SMALL_WIDTHS[0], 5, stride=2, padding=2)]
    for channels, width in pairwise((*SMALL_WIDTHS, 0)):
        # Group norm, unlike batch norm, keeps an image's features independent of its batch.
        stages += [nn.GroupNorm(8, channels), nn.ReLU(inplace=True)]
        if width:
            stages += [nn.MaxPool2d(2), nn.Conv2d(channels, width, 3, padding=1)]
    width = 2 * channels
    hidden = nn.Linear(channels * 4, width), nn.Linear(width, width)
    for layer in (*stages, *hidden):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            # As in torchvision's VGG; torch's default leaves hardly any signal after five layers.
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    pool = nn.AdaptiveMaxPool2d(2)
    return Encoder(nn.Sequential(*stages), pool, hidden, (0.5,), (0.25,), dropout)


def _downloaded(entry: Any) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = entry.get_state_dict(progress=False, check_hash=True)
    # torch.hub raises a RuntimeError if the hash is wrong.
    except (OSError, RuntimeError) as error:
        raise UsageError(
            f"model.encoder_weights: the weights {entry} could not be downloaded "
            f"from {entry.url} ({error}). Fetch that file on a machine with network and set "
            "model.encoder_weights=FILE, or set model.encoder_weights=none for random weights"
        ) from None
    return state


def _load_file(network: nn.Module, name: str, file: str) -> None:
    try:
        with local_copy(as_path(file)) as path:
            if path.suffix == ".safetensors":
                state = safetensors.torch.load_file(path)
            else:
                state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    # torch and safetensors raise a dozen kinds of errors for a file that is not theirs.
    except Exception as error:
        raise UsageError(
            f"model.encoder_weights: {file}: not weights of torchvision's {name}: {error}"
        ) from None
