"""The encoders by name, and the shapes of what they compute.

The configuration reads the names, so nothing is imported here that needs torch.
"""

DEPTHS = {
    "small": 128,
    **dict.fromkeys(("vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn"), 512),
    **dict.fromkeys(("vgg19", "vgg19_bn", "resnet18", "resnet34"), 512),
    **dict.fromkeys(("resnet50", "resnet101", "resnet152"), 2048),
    **dict.fromkeys(("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"), 2048),
    **dict.fromkeys(("wide_resnet50_2", "wide_resnet101_2"), 2048),
    "densenet121": 1024,
    "densenet161": 2208,
    "densenet169": 1664,
    "densenet201": 1920,
    "efficientnet_b0": 1280,
    "efficientnet_b1": 1280,
    "efficientnet_b2": 1408,
    "efficientnet_b3": 1536,
    "efficientnet_b4": 1792,
    "efficientnet_b5": 2048,
    "efficientnet_b6": 2304,
    "efficientnet_b7": 2560,
    **dict.fromkeys(("efficientnet_v2_s", "efficientnet_v2_m", "efficientnet_v2_l"), 1280),
    "convnext_tiny": 768,
    "convnext_small": 768,
    "convnext_base": 1024,
    "convnext_large": 1536,
}
"""Each encoder's D, the width of a region's features. All but ``small`` are torchvision's."""
HIDDEN_WIDTH = 4096
"""F of torchvision's networks: the width of VGG's hidden layers, and so of the paper's."""


def widths(name: str) -> tuple[int, int]:
    """D and F of an encoder: the widths of a region's features and of its last hidden layer."""
    return DEPTHS[name], 2 * DEPTHS[name] if name == "small" else HIDDEN_WIDTH


def grid(name: str, image_size: int) -> int:
    """h = w: the number of regions along a side of the image.

    Args:
        name: The encoder.
        image_size: Side of the images in pixels.
    """
    if name == "small":
        return -(-image_size // 2) // 4
    if name.startswith("vgg"):
        return image_size // 16
    if name.startswith("densenet"):
        # Its first convolution and pooling round up, its three transitions down.
        return -(-image_size // 4) // 8
    if name.startswith("convnext"):
        return image_size // 32
    return -(-image_size // 32)


def smallest_image(name: str, side: int = 1) -> int:
    """Side, in pixels, of the smallest images with at least ``side`` x ``side`` regions."""
    if name.startswith("vgg"):
        # Its hidden layers read the feature map after one more pooling.
        side = max(side, 2)
    size = 1
    while grid(name, size) < side:
        size += 1
    return size
