"""Tag prediction and semantic features (Jing et al. 2018, section 3.2)."""

from torch import Tensor, nn

from raymed.model.dropout import SeededDropout
from raymed.model.precision import Linear


class TagClassifier(nn.Module):
    """Multi-label classifier over L tags, eq. 1: p(l_i = 1) = softmax_i(MLC(v)).

    With the encoder's hidden layers it makes up a full VGG with one output per tag.

    Args:
        width: F, width of the last hidden layer.
        tags: L.
        dropout: Rate after the last hidden layer, as in VGG.
    """

    def __init__(self, width: int, tags: int, dropout: float) -> None:
        super().__init__()
        self.dropout = SeededDropout(dropout)
        self.width = width
        self.output = Linear(width, tags)

    def forward(self, hidden: Tensor, seeds: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Last hidden layer [B, F] -> (logits [B, L], the same layer after its dropout [B, F]).

        ``seeds`` [B] determine the dropout masks.
        """
        # The encoder's dropout uses the seeds themselves.
        feature = self.dropout(hidden, None if seeds is None else seeds + 1)
        return self.output(feature), feature


def ranked_tags(logits: Tensor) -> Tensor:
    """Tag logits [B, L] -> tag ids [B, L], most probable first; ties go to the more frequent."""
    return logits.sort(dim=1, descending=True, stable=True).indices


class SemanticFeatures(nn.Module):
    """Embeddings a_m of the M most probable tags.

    Args:
        tags: L.
        top: M, at most L.
        size: E, width of an embedding.
    """

    def __init__(self, tags: int, top: int, size: int) -> None:
        super().__init__()
        assert top <= tags
        self.top = top
        self.embedding = nn.Embedding(tags, size)

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Tag logits [B, L] -> (semantic features [B, M, E], tag ids [B, M], best first)."""
        ids = ranked_tags(logits)[:, : self.top]
        return self.embedding(ids), ids
