"""A data-parallel worker: its place among the others, and what they agree on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from raymed.config import Config
from raymed.errors import UsageError

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Worker:
    """This process's place among the data-parallel workers."""

    device: torch.device
    rank: int = 0
    world: int = 1

    def first(self, ask: Callable[[], Answer]) -> Answer:
        """What the first worker's question is answered with, on every worker.

        What lies in a folder is asked so: other nodes may see an older state of it.

        Raises:
            UsageError: on all workers, where the question raises it.
        """
        if self.world == 1:
            return ask()
        told: list[Any] = [None, None]
        if self.rank == 0:
            try:
                told[0] = ask()
            except UsageError as error:
                told[1] = error
        dist.broadcast_object_list(told)
        if told[1] is not None:
            raise told[1]
        answer: Answer = told[0]
        return answer

    def any(self, flag: bool) -> bool:
        """Whether it holds on any worker."""
        if self.world == 1:
            return flag
        flags = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(flags)
        return bool(flags > 0)


def local_device() -> torch.device:
    """Where a process without data-parallel workers computes: its GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16, rather than emulating it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has = torch.cpu.get_capabilities()
    # x86 with AVX-512 or AMX, and ARM.
    return any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def dtype_of(config: Config) -> torch.dtype:
    """The type behind a ``training.precision`` that is decided."""
    return torch.bfloat16 if config.training.precision == "bfloat16" else torch.float32


def with_precision(config: Config, device: torch.device) -> Config:
    """The configuration with ``training.precision: auto`` decided for a device.

    On a CPU bfloat16 pays where the convolutions are large.
    """
    if config.training.precision != "auto":
        return config
    large = device.type == "cuda" or config.model.encoder != "small"
    chosen = "bfloat16" if large and computes_bfloat16(device) else "float32"
    return config.override({"training.precision": chosen})
