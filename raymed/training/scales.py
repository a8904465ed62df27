"""The scale of an encoder's features, measured once, at the start of a run.

Published weights of one network yield features of 0 to 1, those of another of 0 to several hundred,
where the tanh of the attention (eqs. 2 and 3 of Jing et al.) saturates and passes no gradient. So
a system divides what its encoder computes by its root mean square over training images.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from raymed.data.batches import TokenisedSplit
from raymed.errors import UsageError
from raymed.model.system import System
from raymed.progress import track
from raymed.training.errors import Interrupted
from raymed.training.split_reports import image_batches
from raymed.training.worker import Worker

SAMPLED = 256
"""Training images that the scales are measured on, spread evenly over the split."""
OUTPUTS = "feature map", "last hidden layer"
"""An encoder's two outputs, as `System.features` returns them."""


def set_scales(
    model: System,
    training: TokenisedSplit,
    batch_size: int,
    worker: Worker,
    ending: Callable[[], bool],
) -> None:
    """Measure the scales of a new model's features and store them in it, the same on all workers.

    Hidden layers that are trained from random weights take the feature map divided by its scale as
    well; without that, the pace at which their biases learn would depend on it.

    Args:
        model: The model, on the worker's device.
        training: The training split, with the features of what is frozen of the encoder.
        batch_size: Images per forward pass.
        worker: This worker; the first measures for all.
        ending: Asked before each pass whether the run is to stop.

    Raises:
        Interrupted: The run was asked to stop. Raised on all workers.
        UsageError: A scale is 0 or not finite. Raised on all workers.
    """

    def measured() -> list[float] | None:
        try:
            return _measure(model, training, batch_size, ending)
        except Interrupted:
            return None

    scales = worker.first(measured)
    if scales is None:
        raise Interrupted("asked to stop before the first step; the same command begins again")
    for buffer, scale in zip(_buffers(model), scales, strict=True):
        buffer.fill_(scale)


def _buffers(model: System) -> list[Tensor]:
    """Where a model keeps its scales, in the order in which they have to be measured."""
    encoder = model.encoder
    rescaled = encoder is not None and encoder.hidden_is_new
    own = [model.visual_scale, model.feature_scale]
    return [*own, encoder.hidden_scale] if encoder is not None and rescaled else own


@torch.inference_mode()
def _measure(
    model: System, training: TokenisedSplit, batch_size: int, ending: Callable[[], bool]
) -> list[float]:
    """The values of `_buffers`; that of the hidden layers' input is set on the way."""
    rows = np.unique(np.linspace(0, len(training) - 1, min(SAMPLED, len(training))).astype(int))

    def features() -> Iterator[tuple[Tensor, Tensor]]:
        batches = image_batches(training, rows, batch_size, model.device)
        count = -(-len(rows) // batch_size)
        for _, images in track(batches, "measuring the scale of features, batches", count):
            if ending():
                raise Interrupted
            with model.precision_context():
                yield model.features(images, seeds=None)

    model.eval()
    buffers = _buffers(model)
    if len(buffers) == 2:
        return _root_mean_squares(features())
    visual, _ = _root_mean_squares(features())
    buffers[2].fill_(visual)
    return [*_root_mean_squares(features()), visual]


def _root_mean_squares(features: Iterator[tuple[Tensor, ...]]) -> list[float]:
    """Of each of an encoder's outputs, over all images and all its elements.

    Raises:
        UsageError: One is 0 or not finite.
    """
    # On a GPU each batch waits in turn; the sums in float64 are exact enough for any number.
    squares = [[(x.double().square().sum().item(), x.numel()) for x in each] for each in features]
    scales = []
    for name, output in zip(OUTPUTS, zip(*squares, strict=True), strict=True):
        scale = (sum(total for total, _ in output) / sum(count for _, count in output)) ** 0.5
        if not 0 < scale < float("inf"):
            raise UsageError(
                f"model.encoder_weights: the encoder's {name} is {scale:g} throughout the training "
                "images: such weights cannot be trained on; use others"
            )
        scales.append(scale)
    return scales
