"""The precision that a model computes in: float32, or bfloat16 by autocast with float32 weights.

Under autocast some layers stay in the type of their weights: recurrent ones, whose state would be
rounded at every step (and which cuDNN would run in float16, where gradients underflow), and those
whose outputs decide something: which tags are attended to, and where a report stops.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def precision_context(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Compute in float32, or in bfloat16 wherever autocast says so, inside the block.

    With bfloat16 a GPU's float32 products, which autocast leaves, may be of TF32.
    """
    mixed = dtype == torch.bfloat16
    if device.type == "cuda":
        # Not reset afterwards: the backward pass comes after the block.
        torch.set_float32_matmul_precision("high" if mixed else "highest")
        torch.backends.cudnn.allow_tf32 = mixed
    if not mixed:
        yield
        return
    with torch.autocast(device.type, dtype):
        yield


def at_least_float32(x: Tensor) -> Tensor:
    """At least float32: for softmax and sums of many terms, which bfloat16 cannot hold apart."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _WeightsPrecision(nn.Module):
    """Computes in the type of its weights, under autocast too."""

    def forward(self, *inputs: Any) -> Any:
        weight = next(self.parameters())
        with torch.autocast(weight.device.type, enabled=False):
            return super().forward(*(_cast(each, weight.dtype) for each in inputs))


class LSTM(_WeightsPrecision, nn.LSTM):
    """`torch.nn.LSTM` in the type of its weights."""


class LSTMCell(_WeightsPrecision, nn.LSTMCell):
    """`torch.nn.LSTMCell` in the type of its weights."""


class Linear(_WeightsPrecision, nn.Linear):
    """`torch.nn.Linear` in the type of its weights: for outputs that something is decided by."""


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, tuple) and not hasattr(value, "to"):
        return tuple(_cast(each, dtype) for each in value)
    return value if value is None else value.to(dtype)
