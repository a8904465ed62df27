"""Soft attention over regions or tags, separately and combined (Jing et al. 2018, section 3.3)."""

import torch
from torch import Tensor, nn

from raymed.model.precision import at_least_float32


class Attention(nn.Module):
    """Soft attention over one modality, eqs. 2 and 3:

    alpha_n = softmax_n(W_att tanh(W x_n + W_h h)),    attended = sum_n alpha_n x_n

    Args:
        features: Width of x_n.
        hidden: H, width of h and of the attention's inner layer.
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.w = nn.Linear(features, hidden, bias=False)
        self.w_h = nn.Linear(hidden, hidden, bias=False)
        self.w_att = nn.Linear(hidden, 1, bias=False)

    def keys(self, x: Tensor) -> Tensor:
        """W x_n, [B, N, features] -> [B, N, H]: the same at every step, so computed only once."""
        keys: Tensor = self.w(x)
        return keys

    def forward(
        self, x: Tensor, keys: Tensor, h: Tensor, present: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x [B, N, features], keys [B, N, H], h [B, H] -> attended [B, features], alpha [B, N].

        alpha is 0 where ``present`` [B, N], if given, is False.
        """
        scores = self.w_att(torch.tanh(keys + self.w_h(h).unsqueeze(1))).squeeze(2)
        if present is not None:
            scores = scores.masked_fill(~present, -torch.inf)
        alpha = at_least_float32(scores).softmax(dim=1)
        return torch.bmm(alpha.to(x.dtype).unsqueeze(1), x).squeeze(1), alpha


class CoAttention(nn.Module):
    """Visual and semantic attention combined, eq. 4: ctx = W_fc [sum alpha_v v ; sum alpha_a a].

    The paper's ablations omit one of the two.

    Args:
        visual: D, width of a region's features; None: no visual attention.
        semantic: E, width of a tag's embedding; None: no semantic attention.
        hidden: H, width of h and of ctx.
    """

    def __init__(self, visual: int | None, semantic: int | None, hidden: int) -> None:
        super().__init__()
        self.visual = Attention(visual, hidden) if visual else None
        self.semantic = Attention(semantic, hidden) if semantic else None
        self.w_fc = nn.Linear((visual or 0) + (semantic or 0), hidden, bias=False)

    def keys(self, v: Tensor, a: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The step-independent terms (W_v v_n [B, N, H], W_a a_m [B, M, H])."""
        return (
            self.visual.keys(v) if self.visual else None,
            self.semantic.keys(a) if self.semantic and a is not None else None,
        )

    def forward(
        self,
        v: Tensor,
        a: Tensor | None,
        keys: tuple[Tensor | None, Tensor | None],
        h: Tensor,
        present: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """One step: (ctx [B, H], alpha over regions [B, N], beta over tags [B, M]).

        Args:
            v: Visual features [B, N, D].
            a: Semantic features [B, M, E].
            keys: The result of `keys` for v and a.
            h: The sentence LSTM's previous hidden state [B, H].
            present: bool [B, N], the regions to attend to; None: all.
        """
        parts, alpha, beta = [], None, None
        if self.visual:
            attended, alpha = self.visual(v, keys[0], h, present)
            parts.append(attended)
        if self.semantic:
            attended, beta = self.semantic(a, keys[1], h)
            parts.append(attended)
        return self.w_fc(torch.cat(parts, dim=1)), alpha, beta


def mean_region(v: Tensor, present: Tensor | None = None) -> Tensor:
    """mean_n v_n, [B, N, D] -> [B, D], over the regions that are ``present`` [B, N]; None: all."""
    if present is None:
        return v.mean(dim=1)
    total = (v * present.unsqueeze(2)).sum(dim=1)
    return total / present.sum(dim=1, keepdim=True).to(v.dtype)


def coverage_penalty(
    attention: Tensor | None, real: Tensor, present: Tensor | None = None
) -> Tensor:
    """sum_n (1 - sum_s attention_s,n)^2: eq. 9, and eq. 14 of Xu et al. (2015).

    Args:
        attention: [B, S, N], at each of S sentences or words; None gives a penalty of 0.
        real: bool [B, S], False beyond the report's end.
        present: bool [B, N], the regions to sum over; None: all.

    Returns:
        [B].
    """
    if attention is None:
        return real.new_zeros(len(real), dtype=torch.get_default_dtype())
    uncovered = (1 - (attention * real.unsqueeze(2)).sum(dim=1)).square()
    return (uncovered if present is None else uncovered * present).sum(dim=1)
