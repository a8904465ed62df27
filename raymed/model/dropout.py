"""Dropout that depends neither on how a batch is split among workers nor on the device."""

import math

import torch
from torch import Tensor, nn

_GOLDEN = -0x61C8864680B583EB
_FIRST, _SECOND = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
"""The constants of SplitMix64, as signed 64-bit integers."""
RANDOM_BITS = 53
"""Random bits per draw: those of a float64's mantissa."""


class SeededDropout(nn.Module):
    """Inverted dropout whose mask for an image is drawn from that image's own seed.

    With one random stream per worker, W workers with B/W images each would drop different units
    from one worker with B images, and a resumed run would have to restore the stream. A seed per
    image and step makes the mask the same everywhere. It is computed on the image's device by
    integer arithmetic alone: no generator is seeded, and the host never waits for the device.

    Args:
        rate: Probability that a unit is set to zero.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, seeds: Tensor | None) -> Tensor:
        """Drop units of ``x`` [B, ...] by ``seeds`` [B] (int64), or none if seeds is None.

        Which units are dropped of the first rows of x[i] does not depend on how many follow.
        """
        if seeds is None or not self.training or self.rate == 0:
            return x
        # A 53-bit integer below rate * 2^53 is a uniform draw from [0, 1) below the rate.
        keep = uniform_bits(seeds, math.prod(x.shape[1:])) >= int(self.rate * 2**RANDOM_BITS)
        return x * keep.view(x.shape) / (1 - self.rate)


def at_site(seeds: Tensor | None, number: int) -> Tensor | None:
    """The seeds of one of several dropouts that share ``seeds``; None stays None."""
    return None if seeds is None else seeds + number


def uniform_bits(seeds: Tensor, count: int) -> Tensor:
    """``count`` integers from 0 to 2^53 - 1 for each seed: int64 [B] -> int64 [B, count].

    SplitMix64 (Steele, Lea and Flood 2014), seeded twice: a seed's stream starts at its own first
    draw, so that the streams of neighbouring seeds do not overlap.
    """
    initial_state = _mix(seeds.unsqueeze(1) * _GOLDEN)
    steps = torch.arange(1, count + 1, device=seeds.device)
    return _shift_right(_mix(initial_state + steps * _GOLDEN), 64 - RANDOM_BITS)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _FIRST
    z = (z ^ _shift_right(z, 27)) * _SECOND
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Shift right as an unsigned integer."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
