"""Abandoning a training step that takes long on a CPU, because the run is asked to stop."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

INTERVAL_S = 0.5
"""Seconds, at least, between two checks within a step whether the run is to stop."""


class StepAbandoned(Exception):
    """The run is to stop, and a step was abandoned before it changed any weight."""


@contextmanager
def abandonable(encoder: nn.Module, ending: Callable[[], bool]) -> Iterator[None]:
    """Check at every layer of an encoder, forward and backward, whether the run is to stop.

    Only for a run with one worker: others would wait forever for this one's gradients.

    Args:
        encoder: The module that takes most of a step. Its forward pass must not change buffers.
        ending: Whether the run is to stop.

    Raises:
        StepAbandoned: The run is to stop. Weights and optimiser are as the last step left them.
    """
    checked = time.monotonic()

    def check(*_: object) -> None:
        nonlocal checked
        if time.monotonic() - checked >= INTERVAL_S:
            checked = time.monotonic()
            if ending():
                raise StepAbandoned

    def after_layer(layer: nn.Module, inputs: object, output: Tensor) -> None:  # noqa: ARG001
        check()
        if output.requires_grad:
            output.register_hook(check)

    layers = [layer for layer in encoder.modules() if not any(layer.children())]
    hooks = [layer.register_forward_hook(after_layer) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
