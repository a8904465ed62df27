"""Torchvision's networks as encoders, each compared with the network's own forward pass."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision import models

from raymed.model import encoder as module
from raymed.model.encoder import build_encoder, encoder_from
from raymed.model.encoder_shapes import DEPTHS, grid, smallest_image, widths

FAMILIES = ("vgg", "resnet", "densenet", "efficientnet", "convnext")
ONE_OF_EACH = ("vgg11_bn", "resnet18", "densenet121", "efficientnet_b0", "convnext_tiny")


def images(count: int, size: int) -> Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size)).astype(np.uint8)
    return torch.from_numpy(pixels)


def test_the_names_are_torchvisions() -> None:
    modules = {f"torchvision.models.{family}" for family in FAMILIES}
    theirs = [
        name
        for name in models.list_models(module=torchvision.models)
        if models.get_model_builder(name).__module__ in modules
    ]
    assert sorted([*theirs, "small"]) == sorted(DEPTHS)


@pytest.mark.slow
@pytest.mark.parametrize("name", DEPTHS)
def test_shapes_are_the_networks(name: str) -> None:
    """Of every encoder, followed on the meta device, where nothing is computed."""
    with torch.device("meta"):
        encoder = module._skeleton(name, dropout=0.0, channels=3).eval().to("meta")
        smallest = smallest_image(name)
        for size in (75, smallest):
            feature_map, hidden = encoder(torch.zeros(1, size, size, dtype=torch.uint8))
            depth, width = widths(name)
            side = grid(name, size)
            assert feature_map.shape == (1, depth, side, side)
            assert hidden.shape == (1, width)
        assert grid(name, smallest - 1) < max(1, 2 * name.startswith("vgg"))


def randomised(network: nn.Module) -> nn.Module:
    """With statistics, scales and shifts that are not those of an untrained network."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.1, 0.1)
    return network.eval()


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_regions_and_overall_feature_come_from_the_networks_own_weights(
    name: str, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    network = randomised(getattr(models, name)(weights=None, num_classes=7))
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    encoder = build_encoder(name, str(tmp_path / "weights.pth"), dropout=0.5).train()
    assert encoder.notices == []
    assert encoder.hidden_is_new == (not name.startswith("vgg"))
    grey = images(2, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (grey[:, None] / 255 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    # The network's own pass, with its inputs to the pooling and to its last layer caught.
    caught: dict[str, Tensor] = {}
    last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    last.register_forward_pre_hook(lambda _, given: caught.update(last=given[0]))
    if hasattr(network, "avgpool"):
        network.avgpool.register_forward_pre_hook(lambda _, given: caught.update(map=given[0]))
    with torch.no_grad():
        network(x)
        feature_map, hidden = encoder(grey)
        if name.startswith("vgg"):
            expected = caught["last"]
            pooled = encoder.pool[0](feature_map)
            torch.testing.assert_close(pooled, caught["map"], rtol=1e-4, atol=1e-5)
        else:
            (layer,) = encoder.hidden
            expected = torch.relu(layer.weight @ caught["last"].T + layer.bias[:, None]).T
            assert layer.out_features == 4096
        if name == "densenet121":
            caught["map"] = torch.relu(network.features(x))
        if not name.startswith("vgg"):
            torch.testing.assert_close(feature_map, caught["map"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "efficientnet_b0", "convnext_tiny"])
def test_in_training_an_image_depends_neither_on_its_batch_nor_on_chance(name: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(name).double().train()
    randomised(encoder)
    encoder.train()
    before = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
    grey = images(3, 64)
    feature_map, hidden = encoder(grey)
    for row in range(3):
        alone = encoder(grey[row : row + 1])
        torch.testing.assert_close(feature_map[row], alone[0][0])
        torch.testing.assert_close(hidden[row], alone[1][0])
    after = encoder.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_checkpoints_encoder_has_the_scale_of_its_pixels_and_integer_counts() -> None:
    torch.manual_seed(0)
    given = build_encoder("densenet121")
    given.mean += 0.25
    copy = encoder_from("densenet121", given.state_dict()).eval()
    assert torch.equal(copy.mean, given.mean)
    types = {key: tensor.dtype for key, tensor in given.state_dict().items()}
    assert {key: tensor.dtype for key, tensor in copy.state_dict().items()} == types
    grey = images(1, 64)
    for ours, expected in zip(copy(grey), given.eval()(grey), strict=True):
        assert torch.equal(ours, expected)


def test_an_untrained_batch_norm_is_reported() -> None:
    (notice,) = build_encoder("resnet18").notices
    assert notice.startswith("model.encoder_weights=none: resnet18 has batch norm")
    assert build_encoder("small").notices == []
