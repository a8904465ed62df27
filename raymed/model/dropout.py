"""Dropout that does not depend on how a batch is spread over workers, nor on the device."""

import torch
from torch import Tensor, nn

_GOLDEN = -0x61C8864680B583EB
_FIRST, _SECOND = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
"""The constants of SplitMix64, as signed numbers of 64 bits."""
_BITS = 53
"""Of a float64's mantissa."""


class SeededDropout(nn.Module):
    """Inverted dropout whose mask for an image is drawn from that image's own seed.

    With one random stream per worker, W workers with B/W images each would drop other units than
    one worker with B images, and a resumed run would have to restore the stream. A seed per image
    and step makes the mask the same everywhere. It is computed where the image is, by arithmetic
    on whole numbers alone: no generator is seeded for an image, and no device is waited for.

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
        # Below this a number of 53 random bits is a uniform draw below the rate.
        keep = uniform_bits(seeds, x.shape[1]) >= int(self.rate * 2**_BITS)
        return x * keep / (1 - self.rate)


def uniform_bits(seeds: Tensor, count: int) -> Tensor:
    """So many draws from 0 to 2^53 - 1 for each seed: int64 [B] -> int64 [B, count].

    The generator SplitMix64 of Steele, Lea and Flood (2014), seeded twice: a seed's stream begins
    where its own first draw says, so that streams of neighbouring seeds do not overlap.
    """
    initial_state = _mixed(seeds.unsqueeze(1) * _GOLDEN)
    steps = torch.arange(1, count + 1, device=seeds.device)
    return _shifted(_mixed(initial_state + steps * _GOLDEN), 64 - _BITS)


def _mixed(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Shifted right as a number without sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
