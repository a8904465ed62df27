"""The precision a model computes in: float32, or bfloat16 by autocast with float32 weights.

Under autocast some layers keep the type of their weights: recurrent ones, whose state would be
rounded at every step (and which cuDNN would run in float16, where gradients underflow), and those
whose outputs are decisions: which tags are attended to, and where a report stops.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def precision_context(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Compute in float32 inside the block, or in bfloat16 wherever autocast does.

    With bfloat16, the float32 products that autocast leaves may use TF32 on a GPU.
    """
    mixed = dtype == torch.bfloat16
    if device.type == "cuda":
        # Not reset afterwards, because the backward pass comes after the block.
        torch.set_float32_matmul_precision("high" if mixed else "highest")
        torch.backends.cudnn.allow_tf32 = mixed
    if not mixed:
        yield
        return
    with torch.autocast(device.type, dtype):
        yield


def at_least_float32(x: Tensor) -> Tensor:
    """In at least float32: for softmax and long sums, for which bfloat16 is too coarse."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _WeightsPrecision(nn.Module):
    """Computes in the type of its weights, even under autocast."""

    def forward(self, *inputs: Any) -> Any:
        weight = next(self.parameters())
        with torch.autocast(weight.device.type, enabled=False):
            return super().forward(*(_cast(each, weight.dtype) for each in inputs))


class LSTM(_WeightsPrecision, nn.LSTM):
    """`torch.nn.LSTM` in the type of its weights."""


class LSTMCell(_WeightsPrecision, nn.LSTMCell):
    """`torch.nn.LSTMCell` in the type of its weights."""


class Linear(_WeightsPrecision, nn.Linear):
    """`torch.nn.Linear` in the type of its weights, for outputs that are decisions."""


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, tuple) and not hasattr(value, "to"):
        return tuple(_cast(each, dtype) for each in value)
    return value if value is None else value.to(dtype)
