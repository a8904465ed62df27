"""Torchvision's classifiers as encoders: where their convolutions end and hidden layers begin.

A region's features v_n are a cell of the last feature map before pooling. The overall image feature
is VGG's last hidden layer; the other networks have none, so that their pooled vector goes through
one hidden layer of the same width.

torchvision is imported on use: it takes two seconds, which every process would pay at its start.
"""

from collections import OrderedDict
from typing import Any, NamedTuple

from torch import nn

from raymed.model.encoder_shapes import DEPTHS, HIDDEN_WIDTH

TORCHXRAYVISION = "densenet121"
"""The network of TorchXRayVision's DenseNet weights (Cohen et al. 2022)."""
TORCHXRAYVISION_SCALE = (0.5,), (1 / 2048,)
"""Maps pixels of 0..1 to its -1024..1024."""


class Parts(NamedTuple):
    """An encoder's parts: those of a network, or new ones.

    Attributes:
        convolutions: Image [B, C, H, W] -> feature map [B, D, h, w].
        pool: Pools a feature map to the input of the first hidden layer.
        hidden: The hidden layers.
    """

    convolutions: nn.Module
    pool: nn.Module
    hidden: list[nn.Linear]


def build_network(name: str, channels: int = 3) -> Any:
    """The torchvision network of that name, with random weights.

    Args:
        name: The network.
        channels: Input channels: 3, or 1 for the DenseNet-121 of TorchXRayVision.
    """
    from torchvision import models

    # Dropping a residual branch at random would make an image's features depend on chance that is
    # not drawn from the image's own seed (`raymed.model.dropout`).
    still = name.startswith(("efficientnet", "convnext"))
    settings: dict[str, Any] = {"stochastic_depth_prob": 0.0} if still else {}
    network = getattr(models, name)(weights=None, **settings)
    if channels == 1:
        assert name == TORCHXRAYVISION
        network.features.conv0 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    return network


def hidden_names(name: str) -> list[str]:
    """The names, in the network, of the layers between its pooling and its last layer."""
    if name.startswith("vgg"):
        return ["classifier.0", "classifier.3"]
    return ["classifier.0"] if name.startswith("convnext") else []


def last_name(network: nn.Module) -> str:
    """The name, in the network, of its last layer: the classes that it was trained on."""
    return next(reversed([name for name, _ in network.named_modules()]))


def split_network(name: str, network: Any) -> Parts:
    """The encoder's parts out of a network; a hidden layer that it lacks is drawn."""
    if name.startswith("vgg"):
        pool = nn.Sequential(network.features[-1], network.avgpool)
        return Parts(network.features[:-1], pool, [network.classifier[0], network.classifier[3]])
    hidden = [new_hidden(DEPTHS[name], HIDDEN_WIDTH)]
    if name.startswith("densenet"):
        layers = OrderedDict([*network.features.named_children(), ("relu5", nn.ReLU())])
        return Parts(nn.Sequential(layers), nn.AdaptiveAvgPool2d(1), hidden)
    if name.startswith("convnext"):
        # Its layer normalisation of the pooled vector is pretrained too.
        return Parts(
            network.features, nn.Sequential(network.avgpool, network.classifier[0]), hidden
        )
    if name.startswith("efficientnet"):
        return Parts(network.features, network.avgpool, hidden)
    layers = OrderedDict(network.named_children())
    del layers["avgpool"], layers["fc"]
    return Parts(nn.Sequential(layers), network.avgpool, hidden)


def new_hidden(inputs: int, width: int) -> nn.Linear:
    """An untrained hidden layer, initialised as torchvision does a layer before a ReLU."""
    layer = nn.Linear(inputs, width)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer


def published_weights(name: str) -> Any:
    """Torchvision's entry of a network's ImageNet weights: their URL and how they scale pixels."""
    from torchvision import models

    return models.get_model_weights(name).IMAGENET1K_V1


def pixel_scale(name: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each input channel, for pixels of 0..1."""
    if channels == 1:
        return TORCHXRAYVISION_SCALE
    transforms = published_weights(name).transforms()
    return tuple(transforms.mean), tuple(transforms.std)
