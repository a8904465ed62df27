"""Tensors that say they are on a GPU, and hold their values on the CPU.

torch dispatches what is done with them as for a GPU's: CUDA's own autocast kernels cast them. Only
then is each operation done on the CPU, on what they hold. So the types that a GPU would compute in
are the real ones, and values can be read. What a GPU alone has is left out: the backward pass
(autograd asks for a device) and cuDNN (whose LSTM is replaced by torch's own for GPUs).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map_only

CUDA = torch.device("cuda", 0)
WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal"}
"""Operations that give something to the host, which has to wait for it."""

waited_for: list[str] = []
"""The operations that made the host wait, since the list was last emptied."""


class Pretended(Tensor):
    """A tensor that says it is on a GPU.

    Args:
        held: its values, on the CPU.
    """

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Pretended":
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device("cuda", 0),
            requires_grad=held.requires_grad,
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held.detach()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Pretended({self.held!r})"

    def tolist(self) -> Any:
        waited_for.append("tolist")
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, kinds: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _done(function, args, kwargs or {})


def _done(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    wanted = kwargs.get("device")
    kwargs = {name: value for name, value in kwargs.items() if name != "device"}
    if wanted is not None:
        kwargs["device"] = torch.device("cpu")
    name = function.overloadpacket.__name__
    to_host = wanted is not None and torch.device(wanted).type == "cpu"
    indexed_by_mask = name.startswith("index") and any(
        isinstance(each, Tensor) and each.dtype == torch.bool
        for each in (args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ())
    )
    if name in WAITS or to_host or indexed_by_mask:
        waited_for.append(name)
    args_held, kwargs_held = tree_map_only(Pretended, lambda t: t.held, (args, kwargs))
    if function is torch.ops.aten._thnn_fused_lstm_cell.default:
        out = _lstm_cell(*args_held)
    elif function is torch.ops.aten._pin_memory.default:
        out = args_held[0]
    else:
        out = function(*args_held, **kwargs_held)
    if (function is torch.ops.aten._to_copy.default and wanted is not None) or wanted is not None:
        on_gpu = torch.device(wanted).type == "cuda"
    else:
        on_gpu = True
    if not on_gpu:
        return out
    wrapped = tree_map_only(Tensor, Pretended, out)
    return return_and_correct_aliasing(function, args, kwargs, wrapped)


def _lstm_cell(
    inputs: Tensor, hidden: Tensor, c: Tensor, bias_i: Tensor | None = None, bias_h: Any = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What a GPU does in one kernel and a CPU has no kernel for."""
    assert inputs.dtype == hidden.dtype == torch.float32, "an LSTM's gradients can underflow"
    gates = inputs + hidden
    if bias_i is not None:
        gates = gates + bias_i + bias_h
    i, f, g, o = gates.chunk(4, dim=1)
    i, f, o = i.sigmoid(), f.sigmoid(), o.sigmoid()
    new = f * c + i * g.tanh()
    return o * new.tanh(), new, torch.cat([i, f, g.tanh(), o], dim=1)


class _Factories(TorchDispatchMode):
    """Has what is made on the GPU, or moved there, be pretended."""

    def __torch_dispatch__(
        self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            return _done(function, args, kwargs)
        if function is torch.ops.aten._pin_memory.default:
            # Of the host's memory, which a driver would pin.
            return args[0]
        return function(*args, **kwargs)


def _tensor(data: Any, device: Any = None, _made: Any = torch.tensor, **others: Any) -> Tensor:
    """`torch.tensor`, which moves what it made past all that could pretend."""
    if device is None or torch.device(device).type != "cuda":
        plain: Tensor = _made(data, device=device, **others)
        return plain
    made: Tensor = _made(data, **others)
    return made.to(device)


@contextmanager
def pretending() -> Iterator[None]:
    """Inside the block there is a GPU that computes in bfloat16."""
    # As FakeTensorMode does: devices are then switched to without asking a driver.
    torch._C._ensureCUDADeviceGuardSet()
    with (
        patch("torch.cuda.is_available", lambda: True),
        patch("torch.cuda.is_bf16_supported", lambda **_: True),
        patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        # Tensors of inference mode cannot be wrapped; and a module's weights are to be replaced
        # where they are moved, as those of a new class must be.
        patch("torch._C._InferenceMode", lambda _: torch.no_grad()),
        patch("torch.__future__.get_overwrite_module_params_on_conversion", lambda: True),
        patch("torch.tensor", _tensor),
        patch("torch.cuda._lazy_init", lambda: None),
        patch("torch.cuda.current_device", lambda: 0),
        patch("torch.cuda.synchronize", lambda: None),
        torch.backends.cudnn.flags(enabled=False),
        _Factories(),
    ):
        yield
