"""Weights from files: what fits, what is reported, and what is refused."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from raymed.errors import UsageError
from raymed.model.encoder import build_encoder, encoder_from

NETWORK = "vgg11"
ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT / "../shared/data/weights/vgg16_imagenet_features.safetensors"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def network() -> models.VGG:
    return models.vgg11(weights=None)


@pytest.fixture
def vgg11(network: models.VGG, monkeypatch: pytest.MonkeyPatch) -> State:
    """Weights of a vgg11 that cost no space: each tensor repeats one number, its own.

    The network that takes them is built once only, which saves seconds.
    """
    monkeypatch.setattr(models, "vgg11", lambda weights: network)  # noqa: ARG005
    return {
        name: torch.tensor(number / 64).expand(tensor.shape)
        for number, (name, tensor) in enumerate(network.state_dict().items())
    }


def saved(folder: Path, state: State, name: str = "weights.pth") -> str:
    torch.save(state, folder / name)
    return str(folder / name)


def test_weights_of_convolutions_alone(tmp_path: Path, vgg11: State) -> None:
    state = {key: t.half().contiguous() for key, t in vgg11.items() if key.startswith("features.")}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    encoder = build_encoder(NETWORK, str(tmp_path / "w.safetensors"))
    for name, tensor in encoder.convolutions.state_dict().items():
        assert torch.equal(tensor, vgg11[f"features.{name}"])  # multiples of 1/64 fit float16
        assert tensor.dtype == torch.float32
    (notice,) = encoder.notices
    assert "w.safetensors lacks classifier.0, classifier.3" in notice
    assert encoder.hidden_is_new


def test_torchvisions_nan_classifier_counts_as_missing(tmp_path: Path, vgg11: State) -> None:
    for key, tensor in vgg11.items():
        if key.startswith("classifier."):
            vgg11[key] = torch.tensor(float("nan")).expand(tensor.shape)
    encoder = build_encoder(NETWORK, saved(tmp_path, vgg11))
    (notice,) = encoder.notices
    assert "has only NaN for classifier.0, classifier.3" in notice
    assert all(tensor.isfinite().all() for tensor in encoder.state_dict().values())
    assert encoder.hidden_is_new


def test_the_last_layer_is_ignored_whatever_its_classes(tmp_path: Path, vgg11: State) -> None:
    vgg11["classifier.6.weight"] = torch.full((3, 4096), float("inf"))
    del vgg11["classifier.6.bias"]
    encoder = build_encoder(NETWORK, saved(tmp_path, vgg11))
    assert encoder.notices == []
    assert not encoder.hidden_is_new


def test_a_file_may_lack_one_hidden_layer(tmp_path: Path, vgg11: State) -> None:
    for part in ("weight", "bias"):
        del vgg11[f"classifier.3.{part}"]
    encoder = build_encoder(NETWORK, saved(tmp_path, vgg11))
    assert "lacks classifier.3:" in encoder.notices[0]
    assert torch.equal(encoder.hidden[0].bias, vgg11["classifier.0.bias"])


def without(*keys: str) -> Callable[[State], object]:
    return lambda state: [state.pop(key) for key in keys]


def with_nan(state: State) -> None:
    state["features.3.weight"] = state["features.3.weight"].clone()
    state["features.3.weight"][1, 2, 0, 0] = float("nan")


def with_nan_in_a_hidden_layer(state: State) -> None:
    state["classifier.3.bias"] = torch.full((4096,), float("nan"))


def of_another(state: State) -> None:
    given = models.squeezenet1_1(weights=None).state_dict()
    state.clear()
    state.update(given)


def of_half_the_layers(state: State) -> None:
    for key in [*state][6:]:
        del state[key]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (of_another, r"vgg11: has, unlike it, features\.0\.weight|has, unlike it, features\.\d+"),
        (
            of_half_the_layers,
            r"vgg11: lacks features\.8\.weight, features\.8\.bias, .* and \d+ more",
        ),
        (without("features.3.bias"), r"vgg11: lacks features\.3\.bias\. Set model\.encoder"),
        (without("classifier.0.bias"), r"vgg11: lacks classifier\.0\.bias\."),
        (with_nan, r"not a number, or infinite: features\.3\.weight\."),
        (with_nan_in_a_hidden_layer, r"not a number, or infinite: classifier\.3\.bias\."),
        (
            lambda state: state.update({"features.0.weight": torch.zeros(64, 1, 3, 3)}),
            r"other shapes of features\.0\.weight \(\[64, 1, 3, 3\], not \[64, 3, 3, 3\]\)",
        ),
        (lambda state: state.update(epoch=3), "a mapping of names to tensors is needed"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, vgg11: State, spoil: Callable[[State], object], message: str
) -> None:
    spoil(vgg11)
    with pytest.raises(UsageError, match=message) as raised:
        build_encoder(NETWORK, saved(tmp_path, vgg11))
    assert str(raised.value).startswith("model.encoder_weights: ")
    assert "\n" not in str(raised.value)


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("run.me"),)


@pytest.mark.usefixtures("vgg11")
def test_code_in_a_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.weight": Malicious()}, "code.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Malicious(), protocol=2))
    for name in ("code.pth", "plain.pth"):
        with pytest.raises(
            UsageError, match=rf"{name}: not weights .* can run code\. Save the"
        ) as got:
            build_encoder(NETWORK, name)
        assert "\n" not in str(got.value)
        assert "weights_only" not in str(got.value)
    assert not (tmp_path / "run.me").exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_truncated_file_is_refused(tmp_path: Path, vgg11: State, name: str) -> None:
    state = {key: vgg11[key].contiguous() for key in ("features.0.weight", "features.0.bias")}
    file = tmp_path / name
    if file.suffix == ".safetensors":
        safetensors.torch.save_file(state, file)
    else:
        torch.save(state, file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UsageError, match=r"cannot be read \(.*copy the file again"):
        build_encoder(NETWORK, str(file))


def torchxrayvision() -> tuple[nn.Module, State]:
    """A network of the form of its published DenseNets, and that network's weights."""
    torch.manual_seed(2)
    network = models.densenet121(weights=None, num_classes=18)
    network.features.conv0 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    # Pixels of up to 1024 either way go in.
    network.features.norm0.running_var *= 1e5
    state = {**network.state_dict(), "op_threshs": torch.full((18,), float("nan"))}
    return network.eval(), state


def test_torchxrayvisions_densenet_reads_one_grey_channel(tmp_path: Path) -> None:
    network, state = torchxrayvision()
    encoder = build_encoder("densenet121", saved(tmp_path, state)).eval()
    assert encoder.notices == []
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 64, 64), np.uint8))
    with torch.no_grad():
        # As `torchxrayvision.datasets.normalize(pixels, 255)` scales them.
        scaled = (2 * (pixels[:, None] / 255) - 1.0) * 1024
        expected = F.relu(network.features(scaled))
        torch.testing.assert_close(encoder(pixels)[0], expected, rtol=1e-3, atol=1e-4)
        # A checkpoint's copy needs no file.
        copy = encoder_from("densenet121", encoder.state_dict()).eval()
        for ours, theirs in zip(copy(pixels), encoder(pixels), strict=True):
            assert torch.equal(ours, theirs)
    with pytest.raises(UsageError, match="not weights of torchvision's densenet169"):
        build_encoder("densenet169", saved(tmp_path, state))


def test_the_keys_of_torchvisions_published_densenets(tmp_path: Path) -> None:
    torch.manual_seed(2)
    state = models.densenet121(weights=None).state_dict()
    old = {
        key.replace("norm1.", "norm.1.").replace("conv1.", "conv.1.")
        if "denselayer" in key
        else key: tensor
        for key, tensor in state.items()
    }
    assert old.keys() != state.keys()
    encoder = build_encoder("densenet121", saved(tmp_path, old))
    layer = "denseblock2.denselayer3.conv1.weight"
    assert torch.equal(encoder.convolutions.state_dict()[layer], state[f"features.{layer}"])


@pytest.mark.skipif(not REAL.exists(), reason="the real VGG-16 weights are not there")
def test_real_convolutions_of_vgg16() -> None:
    encoder = build_encoder("vgg16", str(REAL))
    assert "lacks classifier.0, classifier.3" in encoder.notices[0]
    given = safetensors.torch.load_file(REAL)["features.28.weight"]
    assert torch.equal(encoder.convolutions.state_dict()["28.weight"], given.float())
