"""Passages for a writer that a test calls by itself."""

import torch
from torch import Tensor

from raymed.model.passages import Passages
from raymed.tokens import START


def passages_of(ids: Tensor) -> Passages:
    """Passages of word ids [K, T + 1], each of its own context and image."""
    numbers = torch.arange(len(ids))
    return Passages.of(ids, numbers, numbers, ids[:, :1] == START)
