"""Pretrained weights of torchvision's networks: from torchvision's servers or from a file.

A file holds the whole network, or its convolutions alone; of the latter kind are torchvision's own
``vgg16_features`` (whose classifier is there, but NaN) and many conversions. TorchXRayVision's
DenseNet-121 is a torchvision network but for its first layer, which reads one grey channel.
"""

import pickle
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from raymed.errors import UsageError
from raymed.model.networks import TORCHXRAYVISION, hidden_names, last_name, published_weights
from raymed.storage import as_path, local_copy

State = Mapping[str, Tensor]

_FIRST_LAYER = "features.conv0.weight"
_THRESHOLDS = "op_threshs"
"""Of TorchXRayVision's classifier."""
_OLD_DENSENET_KEY = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)")
_NAMED = 3
"""How many keys a message names."""


class Loaded(NamedTuple):
    """What became of weights.

    Attributes:
        has_hidden: Whether they include the network's first hidden layer.
        notice: Which layers they lack; empty if none.
    """

    has_hidden: bool
    notice: str


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


def read_weights(name: str, weights: str) -> dict[str, Tensor]:
    """The network's weights, by the names that torchvision has for them.

    Args:
        name: The network.
        weights: ``imagenet`` or a file (.safetensors, or as `torch.save` writes it).

    Raises:
        UsageError: They cannot be downloaded, or the file is not one of weights.
    """
    state = _downloaded(name) if weights == "imagenet" else _file(name, weights)
    # As torchvision does: its published DenseNets are older than its present names.
    return {_OLD_DENSENET_KEY.sub(r"\1\2", key): tensor for key, tensor in state.items()}


def input_channels(name: str, state: State | None) -> int:
    """The input channels of a network with such weights: 1 if they are TorchXRayVision's."""
    first = (state or {}).get(_FIRST_LAYER)
    grey = first is not None and name == TORCHXRAYVISION and first.shape[1:2] == (1,)
    return 1 if grey else 3


def load_weights(network: nn.Module, name: str, state: State, source: str) -> Loaded:
    """Load weights into a network, whose last layer is ignored.

    Args:
        network: The network, with as many input channels as the weights have.
        name: Its name.
        state: The weights, from `read_weights`.
        source: Where they are from, for messages.

    Raises:
        UsageError: They belong to another network, lack some of its convolutions, or contain NaN.
    """
    where = f"model.encoder_weights: {source}"
    last = last_name(network) + "."
    expected = {k: t for k, t in network.state_dict().items() if not k.startswith(last)}
    given = {k: t for k, t in state.items() if not k.startswith(last) and k != _THRESHOLDS}
    lost = _is_nan_classifier(name, state)
    if lost:
        given = {key: tensor for key, tensor in given.items() if not key.startswith("classifier.")}
    optional = {key for key in expected if key.endswith("num_batches_tracked")}
    layers = [layer for layer in hidden_names(name) if not _has(given, layer)]
    optional |= {key for key in expected if key.rpartition(".")[0] in layers}
    _refuse(where, name, "has, unlike it,", (key for key in given if key not in expected))
    _refuse(where, name, "lacks", (k for k in expected if k not in given and k not in optional))
    _refuse(
        where,
        name,
        "has other shapes of",
        (
            f"{key} ({list(tensor.shape)}, not {list(expected[key].shape)})"
            for key, tensor in given.items()
            if tensor.shape != expected[key].shape
        ),
    )
    broken = _named(key for key, tensor in given.items() if not tensor.isfinite().all())
    if broken:
        raise UsageError(f"{where}: not a number, or infinite: {broken}. Use other weights")
    network.load_state_dict({**given}, strict=False)
    notice = f"{where} {'has only NaN for' if lost else 'lacks'} {', '.join(layers)}"
    notice += ": trained from random weights, or left random with model.train_encoder=none"
    has_hidden = name.startswith("vgg") and "classifier.0" not in layers
    return Loaded(has_hidden, notice if layers else "")


def _has(state: State, layer: str) -> bool:
    return any(key.startswith(f"{layer}.") for key in state)


def _is_nan_classifier(name: str, state: State) -> bool:
    """Whether these are convolutions alone, as torchvision publishes them for VGG-16.

    Its IMAGENET1K_FEATURES fill the whole classifier, the last layer included, with NaN.
    """
    classifier = [tensor for key, tensor in state.items() if key.startswith("classifier.")]
    is_vgg = name.startswith("vgg")
    return is_vgg and bool(classifier) and all(tensor.isnan().any() for tensor in classifier)


def _refuse(where: str, name: str, fault: str, keys: Iterable[str]) -> None:
    if named := _named(keys):
        raise UsageError(
            f"{where}: not weights of torchvision's {name}: {fault} {named}. Set model.encoder to "
            "the network they belong to, or use other weights"
        )


def _named(keys: Iterable[str]) -> str:
    """The first few keys, and how many more there are; empty if there are none."""
    listed = list(keys)
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more


def _downloaded(name: str) -> dict[str, Tensor]:
    entry = published_weights(name)
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


def _file(name: str, file: str) -> dict[str, Tensor]:
    try:
        with local_copy(as_path(file)) as path:
            state: Any
            if path.suffix == ".safetensors":
                state = safetensors.torch.load_file(path)
            else:
                # Without weights_only a file could run code of its own.
                state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # Its own text advises to load the file with weights_only=False, which would run the code.
        raise UsageError(
            f"model.encoder_weights: {file}: not weights of torchvision's {name}: it has Python "
            "objects other than tensors, which are never loaded because they can run code. Save "
            "the network's state_dict() alone, with torch.save or safetensors"
        ) from None
    # torch and safetensors raise a dozen kinds of errors for a file that is not theirs.
    except Exception as error:
        why = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
        raise UsageError(
            f"model.encoder_weights: {file}: not weights of torchvision's {name}: it cannot be "
            f"read ({why}). Save the network's state_dict() with torch.save or safetensors, or "
            "copy the file again if it is truncated"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise UsageError(
            f"model.encoder_weights: {file}: not weights of torchvision's {name}: a mapping of "
            "names to tensors is needed, as the network's state_dict() is"
        )
    return state
