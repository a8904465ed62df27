"""Co-attention over regions and tags (Jing et al. 2018, section 3.3, eqs. 2 to 4)."""

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Soft attention of one modality, eqs. 2 and 3:

    alpha_n = softmax_n(W_att tanh(W x_n + W_h h)),    attended = sum_n alpha_n x_n

    Args:
        features: width of x_n.
        hidden: width of h and of the attention's inner layer.
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.w = nn.Linear(features, hidden, bias=False)
        self.w_h = nn.Linear(hidden, hidden, bias=False)
        self.w_att = nn.Linear(hidden, 1, bias=False)

    def keys(self, x: Tensor) -> Tensor:
        """W x_n, [B, N, features] -> [B, N, H]: the same at every step, so computed once."""
        keys: Tensor = self.w(x)
        return keys

    def forward(self, x: Tensor, keys: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, N, features], keys [B, N, H], h [B, H] -> attended [B, features], alpha [B, N]."""
        scores = self.w_att(torch.tanh(keys + self.w_h(h).unsqueeze(1))).squeeze(2)
        alpha = scores.softmax(dim=1)
        return torch.bmm(alpha.unsqueeze(1), x).squeeze(1), alpha


class CoAttention(nn.Module):
    """Visual and semantic attention joined, eq. 4: ctx = W_fc [sum alpha_v v ; sum alpha_a a].

    Args:
        visual: D, width of a region's features.
        semantic: E, width of a tag's embedding.
        hidden: H, width of h and of ctx.
    """

    def __init__(self, visual: int, semantic: int, hidden: int) -> None:
        super().__init__()
        self.visual = Attention(visual, hidden)
        self.semantic = Attention(semantic, hidden)
        self.w_fc = nn.Linear(visual + semantic, hidden, bias=False)

    def keys(self, v: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """The step-independent terms (W_v v_n [B, N, H], W_a a_m [B, M, H])."""
        return self.visual.keys(v), self.semantic.keys(a)

    def forward(
        self, v: Tensor, a: Tensor, keys: tuple[Tensor, Tensor], h: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step: (ctx [B, H], alpha over regions [B, N], beta over tags [B, M]).

        Args:
            v: visual features [B, N, D].
            a: semantic features [B, M, E].
            keys: what `keys` gave for v and a.
            h: the sentence LSTM's previous hidden state [B, H].
        """
        v_att, alpha = self.visual(v, keys[0], h)
        a_att, beta = self.semantic(a, keys[1], h)
        return self.w_fc(torch.cat([v_att, a_att], dim=1)), alpha, beta
