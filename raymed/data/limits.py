"""What an image may be at most, and how it is said that one cannot be used."""

MAX_PIXELS = 80_000_000
"""Twice the largest radiograph; a small file that decodes to more is an image bomb."""


class ImageError(ValueError):
    """One image that cannot be used, with the reason in words.

    The message is ``reason`` or ``reason: detail``.
    """


def refuse_bomb(width: int, height: int, samples: int = 1) -> None:
    """See what a header declares, before anything is decoded.

    Args:
        width: in pixels; height likewise.
        samples: values per pixel, such as 3 for colours.

    Raises:
        ImageError: more pixels than `MAX_PIXELS`, or more than 4 samples in one.
    """
    if width * height > MAX_PIXELS or samples > 4:
        raise ImageError(
            f"image is too large: {width} x {height} pixels of {samples} samples; at most "
            f"{MAX_PIXELS:,} of 4 are read"
        )
