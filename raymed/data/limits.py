"""Limits on image sizes, and the error for images that cannot be used."""

MAX_PIXELS = 80_000_000
"""Twice the largest radiograph; a small file that decodes to more is a decompression bomb."""


class ImageError(ValueError):
    """An image cannot be used. The message is ``reason`` or ``reason: detail``."""


def refuse_bomb(width: int, height: int, samples: int = 1) -> None:
    """Check the size that a header declares, before anything is decoded.

    Args:
        width: Width in pixels.
        height: Height in pixels.
        samples: Values per pixel, such as 3 for RGB.

    Raises:
        ImageError: There are more than `MAX_PIXELS` pixels, or more than 4 samples per pixel.
    """
    if width * height > MAX_PIXELS or samples > 4:
        raise ImageError(
            f"image is too large: {width} x {height} pixels of {samples} samples; the limit is "
            f"{MAX_PIXELS:,} pixels of 4 samples"
        )
