"""An output layer that shares the word embeddings' matrix (Press and Wolf 2017)."""

import torch.nn.functional as F
from torch import Tensor, nn


class TiedLinear(nn.Module):
    """Logits W x + b, with W [V, E] the matrix of an embedding.

    It uses the embedding's parameter and has none of its own but b, so that a checkpoint holds W
    once and the gradients of both uses add up.

    Args:
        embedding: Owns W.
        bias: b [V], or None.
    """

    bias: nn.Parameter | None

    def __init__(self, embedding: nn.Embedding, bias: nn.Parameter | None) -> None:
        super().__init__()
        # In a tuple, where torch does not look for parts: W would get a second name.
        self._owner = (embedding,)
        self.register_parameter("bias", bias)

    @property
    def weight(self) -> Tensor:
        """W."""
        return self._owner[0].weight

    def forward(self, x: Tensor) -> Tensor:
        """x [..., E] -> logits [..., V]."""
        return F.linear(x, self.weight, self.bias)
