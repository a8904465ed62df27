"""Dropout that does not depend on how a batch is spread over workers."""

import torch
from torch import Tensor, nn


class SeededDropout(nn.Module):
    """Inverted dropout whose mask for an image is drawn from that image's own seed.

    With one random stream per worker, W workers with B/W images each would drop other units than
    one worker with B images, and a resumed run would have to restore the stream. A seed per image
    and step makes the mask the same everywhere.

    Args:
        rate: probability that a unit is set to zero.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, seeds: Tensor | None) -> Tensor:
        """Drop units of ``x`` [B, D] by ``seeds`` [B] (int64), or none where seeds is None."""
        if seeds is None or not self.training or self.rate == 0:
            return x
        draws = [
            torch.rand(x.shape[1], generator=torch.Generator().manual_seed(int(seed)))
            for seed in seeds.tolist()
        ]
        keep = (torch.stack(draws) >= self.rate).to(x.device)
        return x * keep / (1 - self.rate)
