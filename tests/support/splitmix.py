"""SplitMix64 (Steele, Lea and Flood 2014) with Python's whole numbers, as dropout draws from it."""

WORD = 2**64


def mixed(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % WORD
    return z ^ (z >> 31)


def draws(seed: int, count: int) -> list[float]:
    """Uniform draws from 0 to 1, of 53 bits, for an image's seed."""
    golden = 0x9E3779B97F4A7C15
    start = mixed(seed * golden % WORD)
    return [(mixed((start + i * golden) % WORD) >> 11) / 2**53 for i in range(1, count + 1)]
