"""A data-parallel worker: its place among the others, and the precision it computes in."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from raymed.sections import TrainingConfig


@dataclass(frozen=True)
class Worker:
    """This process's place among the data-parallel workers."""

    device: torch.device
    rank: int = 0
    world: int = 1


def autocast(config: TrainingConfig, device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 where a GPU has it and the configuration lets it; else full precision."""
    if config.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()
