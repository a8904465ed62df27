"""Leaving a training step in its middle, where it takes a CPU long, because the run is to end."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

INTERVAL_S = 0.5
"""How often a step asks whether the run is to end, at most."""


class StepAbandoned(Exception):
    """The run is to end, and a step was left before it changed a weight."""


@contextmanager
def abandonable(encoder: nn.Module, ending: Callable[[], bool]) -> Iterator[None]:
    """Ask, at every layer of an encoder, forward and backward, whether the run is to end.

    Only for a run of one worker: others would wait for this one's gradients for ever.

    Args:
        encoder: The module that takes most of a step. Its forward pass changes no buffers.
        ending: Whether the run is to end.

    Raises:
        StepAbandoned: It is. Weights and optimiser are as the step before has left them.
    """
    asked = time.monotonic()

    def ask(*_: object) -> None:
        nonlocal asked
        if time.monotonic() - asked >= INTERVAL_S:
            asked = time.monotonic()
            if ending():
                raise StepAbandoned

    def after_layer(layer: nn.Module, inputs: object, output: Tensor) -> None:  # noqa: ARG001
        ask()
        if output.requires_grad:
            output.register_hook(ask)

    layers = [layer for layer in encoder.modules() if not any(layer.children())]
    hooks = [layer.register_forward_hook(after_layer) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
