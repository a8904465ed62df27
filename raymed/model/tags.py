"""Tag prediction and semantic features (Jing et al. 2018, section 3.2)."""

import torch
from torch import Tensor, nn

from raymed.model.dropout import SeededDropout


class TagClassifier(nn.Module):
    """Multi-label classifier over L tags, eq. 1: p(l_i = 1) = softmax_i(MLC(v)).

    The full VGG: its own pooling and two hidden layers, with an output per tag.

    Args:
        pool: what brings a feature map to the hidden layers' input size.
        fully_connected: the hidden layers.
        tags: L.
        dropout: rate after each hidden layer, as in VGG.
    """

    def __init__(
        self,
        pool: nn.Module,
        fully_connected: tuple[nn.Linear, nn.Linear],
        tags: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.hidden = nn.ModuleList(fully_connected)
        self.dropout = SeededDropout(dropout)
        self.width = fully_connected[-1].out_features
        self.output = nn.Linear(self.width, tags)

    def forward(self, feature_map: Tensor, seeds: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Feature map [B, D, h, w] -> (logits [B, L], last hidden layer [B, F]).

        ``seeds`` [B] draw the dropout masks.
        """
        x = self.pool(feature_map).flatten(1)
        for position, layer in enumerate(self.hidden):
            layer_seeds = None if seeds is None else seeds + position
            x = self.dropout(torch.relu(layer(x)), layer_seeds)
        return self.output(x), x


class SemanticFeatures(nn.Module):
    """Embeddings a_m of the M tags of highest probability.

    Args:
        tags: L.
        top: M, at most L.
        size: E, the width of an embedding.
    """

    def __init__(self, tags: int, top: int, size: int) -> None:
        super().__init__()
        assert top <= tags
        self.top = top
        self.embedding = nn.Embedding(tags, size)

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Tag logits [B, L] -> (semantic features [B, M, E], tag ids [B, M], best first)."""
        ids = logits.topk(self.top, dim=1).indices
        return self.embedding(ids), ids
