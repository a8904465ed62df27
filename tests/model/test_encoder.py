import urllib.error
from collections.abc import Callable
from email.message import Message
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from raymed.errors import UsageError
from raymed.model.encoder import build_encoder, encoder_from, regions
from raymed.model.encoder_shapes import grid, widths
from tests.support.splitmix import draws


def grey_images(count: int, size: int) -> Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size)).astype(np.uint8)
    return torch.from_numpy(pixels)


def test_vgg19_is_torchvisions_up_to_its_last_hidden_layer() -> None:
    torch.manual_seed(3)
    encoder = build_encoder("vgg19")
    # Built from the same seed, torchvision's own network has the same weights.
    torch.manual_seed(3)
    network = torchvision.models.vgg19(weights=None).eval()
    images = grey_images(1, 224)
    to_input = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )
    picture = Image.fromarray(images[0].numpy()).convert("RGB")
    last_convolution = max(
        i for i, layer in enumerate(network.features) if isinstance(layer, nn.Conv2d)
    )
    with torch.no_grad():
        features, hidden = encoder(images)
        x = to_input(picture).unsqueeze(0)
        expected = torch.relu(network.features[: last_convolution + 1](x))
        pooled = torch.flatten(network.avgpool(network.features[-1](expected)), 1)
        penultimate = network.classifier[:-1](pooled)
    assert features.shape == (1, 512, 14, 14)
    assert grid("vgg19", 224) == 14
    assert widths("vgg19") == (512, hidden.shape[1])
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(hidden, penultimate, rtol=1e-4, atol=1e-5)


def test_regions_are_the_places_of_the_feature_map_row_by_row() -> None:
    feature_map = torch.randn(2, 5, 3, 4)
    v = regions(feature_map)
    assert v.shape == (2, 12, 5)
    for row in range(3):
        for column in range(4):
            assert torch.equal(v[:, row * 4 + column], feature_map[:, :, row, column])


def test_small_encoder_shapes_and_independence_of_the_batch() -> None:
    encoder = build_encoder("small").double()
    depth, width = widths("small")
    images = grey_images(3, 64)
    features, hidden = encoder(images)
    assert (features.shape, hidden.shape) == ((3, depth, 8, 8), (3, width))
    for whole, alone in zip((features, hidden), encoder(images[1:2]), strict=True):
        torch.testing.assert_close(whole[1:2], alone, rtol=0, atol=1e-12)
    # Images of any size from 8 pixels on fit the hidden layers.
    for size in (8, 9, 15, 17, 30, 33, 63, 64, 65, 67):
        features, hidden = encoder(grey_images(1, size))
        assert (features.shape, hidden.shape) == (
            (1, depth, *[grid("small", size)] * 2),
            (1, width),
        )


def test_dropout_between_the_hidden_layers_is_drawn_from_the_seeds() -> None:
    encoder = build_encoder("small", dropout=0.25).double().train()
    images = grey_images(2, 16)
    seeds = torch.tensor([7, 2**61])
    first, last = encoder.hidden
    feature_map, plain = encoder(images)
    x = torch.relu(first(encoder.pool(feature_map).flatten(1)))
    for row, seed in enumerate(seeds.tolist()):
        kept = torch.tensor([draw >= 0.25 for draw in draws(seed, x.shape[1])])
        x[row] = torch.where(kept, x[row] / 0.75, 0)
    expected = torch.relu(last(x))
    torch.testing.assert_close(encoder(images, seeds)[1], expected)
    assert not torch.allclose(plain, expected)


def test_an_encoder_built_from_a_state_equals_its_original() -> None:
    given = build_encoder("small")
    state = torch.get_rng_state()
    copy = encoder_from("small", given.state_dict())
    assert torch.equal(torch.get_rng_state(), state)
    images = grey_images(2, 16)
    for ours, expected in zip(copy(images), given(images), strict=True):
        assert torch.equal(ours, expected)
    with pytest.raises(RuntimeError):
        encoder_from("vgg11", given.state_dict())


def test_loaded_weights_are_copied_to_aligned_memory() -> None:
    # As out of a mapped file, whose tensors begin anywhere.
    state = {}
    for name, tensor in build_encoder("small").state_dict().items():
        odd = torch.empty(tensor.numel() + 1)[1:].view_as(tensor)
        state[name] = odd.copy_(tensor)
        assert odd.data_ptr() % 64
    assert not any(p.data_ptr() % 64 for p in encoder_from("small", state).parameters())


@pytest.fixture(scope="module")
def network() -> torchvision.models.VGG:
    return torchvision.models.vgg11(weights=None)


@pytest.fixture
def vgg11(network: torchvision.models.VGG, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Weights of a vgg11 that cost no space: each tensor repeats one number, its own.

    The network that takes them is built once only, which saves seconds.
    """
    monkeypatch.setattr(torchvision.models, "vgg11", lambda weights: network)  # noqa: ARG005
    return {
        name: torch.tensor(number / 64).expand(tensor.shape)
        for number, (name, tensor) in enumerate(network.state_dict().items())
    }


def test_weights_of_a_file(tmp_path: Path, vgg11: dict[str, Tensor]) -> None:
    file = tmp_path / "vgg11.pth"
    torch.save(vgg11, file)
    encoder = build_encoder("vgg11", str(file))
    first, second = encoder.hidden
    for name, tensor in encoder.convolutions.state_dict().items():
        assert torch.equal(tensor, vgg11[f"features.{name}"])
    for layer, place in ((first, 0), (second, 3)):
        assert torch.equal(layer.weight, vgg11[f"classifier.{place}.weight"])
        assert torch.equal(layer.bias, vgg11[f"classifier.{place}.bias"])


def other_network(file: Path) -> None:
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), file)


def other_network_safetensors(file: Path) -> None:
    safetensors.torch.save_file({"features.0.weight": torch.zeros(1)}, file)


@pytest.mark.usefixtures("vgg11")
@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("absent.pth", lambda _: None, "absent.pth: no such file"),
        ("text.pth", lambda file: file.write_text("no weights"), "not weights of .* vgg11"),
        ("empty.safetensors", lambda file: file.write_bytes(b""), "not weights of .* vgg11"),
        ("list.pth", lambda file: torch.save([1, 2], file), "not weights of .* vgg11"),
        ("other.pth", other_network, "not weights of torchvision's vgg11"),
        ("other.safetensors", other_network_safetensors, "not weights of torchvision's vgg11"),
    ],
)
def test_a_file_with_other_content_is_rejected(
    tmp_path: Path, name: str, write: Callable[[Path], object], message: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(UsageError, match=message) as raised:
        build_encoder("vgg11", str(tmp_path / name))
    assert str(raised.value).startswith("model.encoder_weights: ")


class Page(BytesIO):
    def info(self) -> Message:
        return Message()


def no_network(*_: object, **__: object) -> Page:
    raise urllib.error.URLError("Network is unreachable")


def login_page(*_: object, **__: object) -> Page:
    return Page(b"<html>please log in</html>")


@pytest.mark.usefixtures("vgg11")
@pytest.mark.parametrize("urlopen", [no_network, login_page])
def test_download_that_fails_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, urlopen: Callable[..., object]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", urlopen)
    with pytest.raises(
        UsageError,
        match=r"VGG11_Weights\.IMAGENET1K_V1 could not be downloaded .*encoder_weights=none",
    ):
        build_encoder("vgg11", "imagenet")


def test_small_has_no_weights_to_load() -> None:
    with pytest.raises(UsageError, match="no 'imagenet' weights; set it to none"):
        build_encoder("small", "imagenet")
