"""The image encoder: a network up to its last hidden layer, and the visual features v_n within it.

Jing et al. (2018), sections 3.2 and 4.2: VGG-19 (Simonyan and Zisserman 2015), whose last
convolution yields 14 x 14 x 512 for an image of 224 x 224, and whose fully connected layers
become the tag classifier's (its output layer is in `raymed.model.tags`).
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn

from raymed.model.dropout import SeededDropout
from raymed.model.encoder_shapes import widths
from raymed.model.encoder_weights import check_weights, input_channels, load_weights, read_weights
from raymed.model.networks import (
    TORCHXRAYVISION,
    build_network,
    new_hidden,
    pixel_scale,
    split_network,
)

SMALL_WIDTHS = (32, 64, 128)

CONVOLUTIONS = ("convolutions.", "mean", "std")
"""How the names of the convolutional part's weights begin."""


class Encoder(nn.Module):
    """Maps images to features: the part of a network that has pretrained weights.

    Batch norm always uses its stored statistics, in training too. With those of the batch, an
    image's features would depend on the images beside it, hence on the number of workers, and
    validation would not see the network that was trained.

    Args:
        convolutions: All convolutional layers, without the last pooling.
        pool: Pools a feature map to the hidden layers' input size.
        hidden: The hidden layers.
        mean: Mean of each input channel, for pixels scaled to 0..1. The grey value is copied to as
            many channels as there are means.
        std: Standard deviation of each input channel, likewise.
        dropout: Rate between the hidden layers, as in VGG.

    Attributes:
        convolutions: None where the features are cached and the hidden layers are trained.
        hidden_scale: The feature map is divided by it before the pooling: 1, or the map's scale
            where the hidden layers are trained from random weights (`raymed.training.scales`).
        hidden_is_new: Whether the first hidden layer's weights were drawn at random just now.
        notices: What the user should know of the weights.
    """

    mean: Tensor
    std: Tensor
    hidden_scale: Tensor

    def __init__(
        self,
        convolutions: nn.Module,
        pool: nn.Module,
        hidden: Sequence[nn.Linear],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        dropout: float,
    ) -> None:
        super().__init__()
        self.convolutions: nn.Module | None = convolutions
        self.pool = pool
        self.hidden = nn.ModuleList(hidden)
        self.dropout = SeededDropout(dropout)
        self.hidden_is_new = False
        self.notices: list[str] = []
        # On the CPU even while the weights are on the meta device (`encoder_from`).
        for name, values in (("mean", mean), ("std", std)):
            channels = torch.tensor(values, device="cpu").view(1, -1, 1, 1)
            self.register_buffer(name, channels)
        self.register_buffer("hidden_scale", torch.ones((), device="cpu"))

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all layers but batch norm, which stays in eval mode."""
        super().train(mode)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()
        return self

    def move_to(self, device: torch.device, precision: torch.dtype) -> Self:
        """Move to a device, to compute there in ``precision``.

        On GPUs and in bfloat16 the convolutions are faster in channels-last memory format; in
        float32 a CPU is slower with it (`python -m tests.benchmarks.precision`).
        """
        last = device.type == "cuda" or precision == torch.bfloat16
        if self.convolutions is not None and last:
            self.convolutions.to(memory_format=torch.channels_last)
        return self.to(device)

    def drop_convolutions(self) -> Self:
        """Remove the convolutions, in place: what is left takes their feature maps."""
        self.convolutions = None
        del self.mean, self.std
        return self

    def forward(self, images: Tensor, seeds: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Greyscale uint8 [B, H, W] -> feature map [B, D, h, w], last hidden layer [B, F].

        ``seeds`` [B] determine the dropout masks. The last hidden layer is that before its dropout.
        """
        feature_map = self.feature_map(images)
        return feature_map, self.overall(feature_map, seeds)

    def feature_map(self, images: Tensor) -> Tensor:
        """Greyscale uint8 [B, H, W] -> feature map [B, D, h, w], h as in `encoder_shapes.grid`."""
        assert self.convolutions is not None
        grey = images.unsqueeze(1).to(self.mean.dtype) / 255
        feature_map: Tensor = self.convolutions((grey - self.mean) / self.std)
        return feature_map

    def overall(self, feature_map: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Feature map [B, D, h, w] -> last hidden layer [B, F], before its dropout."""
        first, *others = self.hidden
        x = torch.relu(first(self.pool(feature_map / self.hidden_scale).flatten(1)))
        for layer in others:
            x = torch.relu(layer(self.dropout(x, seeds)))
        return x


def regions(feature_map: Tensor) -> Tensor:
    """Feature map [B, D, h, w] -> visual features v_n [B, N, D], N = h w in row-major order."""
    return feature_map.flatten(2).transpose(1, 2)


def build_encoder(name: str, weights: str = "none", dropout: float = 0.0) -> Encoder:
    """An encoder by name: a torchvision network, or ``small`` for images of about 64 pixels.

    Args:
        name: One of `raymed.model.encoder_shapes.DEPTHS`.
        weights: ``imagenet``, ``none`` or a file with weights of that network.
        dropout: Rate between the hidden layers.

    Raises:
        UsageError: The weights cannot be downloaded or read, or belong to another network.
    """
    check_weights(name, weights)
    state = None if weights == "none" else read_weights(name, weights)
    encoder = _skeleton(name, dropout, input_channels(name, state), state, weights)
    if state is None and any(isinstance(layer, nn.BatchNorm2d) for layer in encoder.modules()):
        encoder.notices.append(
            f"model.encoder_weights=none: {name} has batch norm, which keeps its initial "
            "statistics and thus normalises nothing: give it trained weights, or choose small, a "
            "vgg without _bn, or a convnext"
        )
    return encoder


def encoder_from(name: str, state: Mapping[str, Tensor], dropout: float = 0.0) -> Encoder:
    """The encoder of that name with the weights of an encoder's ``state_dict()``.

    Raises:
        RuntimeError: The weights belong to another network.
    """
    grey = name == TORCHXRAYVISION and "mean" in state and state["mean"].numel() == 1
    # Initialising 140 million weights, only to replace them, would take seconds.
    with torch.device("meta"):
        encoder = _skeleton(name, dropout, channels=1 if grey else 3)
    encoder.hidden_is_new = False
    dtype = torch.get_default_dtype()
    # Copied, because tensors in a mapped file are not aligned as the allocator's are, and matrix
    # products then round differently: a resumed run would drift from an uninterrupted one.
    copies = {
        key: value.to(dtype if value.is_floating_point() else value.dtype, copy=True)
        for key, value in state.items()
    }
    encoder.load_state_dict(copies, assign=True)
    return encoder


def _skeleton(
    name: str,
    dropout: float,
    channels: int,
    state: Mapping[str, Tensor] | None = None,
    source: str = "",
) -> Encoder:
    """The encoder with random weights, except those in a torchvision ``state`` from ``source``."""
    if name == "small":
        encoder = _small(dropout)
        encoder.hidden_is_new = True
        return encoder
    network = build_network(name, channels)
    loaded = None if state is None else load_weights(network, name, state, source)
    encoder = Encoder(*split_network(name, network), *pixel_scale(name, channels), dropout)
    encoder.hidden_is_new = loaded is None or not loaded.has_hidden
    if loaded is not None and loaded.notice:
        encoder.notices.append(loaded.notice)
    return encoder


def _small(dropout: float) -> Encoder:
    # The first convolution halves the image: at full resolution a narrow network would spend most
    # of its time in its first layer.
    stages: list[nn.Module] = [nn.Conv2d(1, SMALL_WIDTHS[0], 5, stride=2, padding=2)]
    for channels, width in pairwise((*SMALL_WIDTHS, 0)):
        # Group norm, unlike batch norm, keeps an image's features independent of its batch.
        stages += [nn.GroupNorm(8, channels), nn.ReLU(inplace=True)]
        if width:
            stages += [nn.MaxPool2d(2), nn.Conv2d(channels, width, 3, padding=1)]
    for layer in stages:
        if isinstance(layer, nn.Conv2d):
            # As in torchvision's VGG; torch's default leaves hardly any signal after five layers.
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    depth, width = widths("small")
    hidden = new_hidden(depth * 4, width), new_hidden(width, width)
    pool = nn.AdaptiveMaxPool2d(2)
    return Encoder(nn.Sequential(*stages), pool, hidden, (0.5,), (0.25,), dropout)
