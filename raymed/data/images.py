"""Decoding an image to square greyscale pixels."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
from PIL import Image, ImageOps

from raymed.data.examples import ImageInput
from raymed.data.limits import ImageError, refuse_bomb
from raymed.image_files import DICOM_MARK

_FORMATS = ("PNG", "JPEG", "TIFF")
# Without a preamble, the file begins with an element of group 2 or 8: its tag, then its type in
# two letters or its length.
_BARE_DICOM = re.compile(
    rb"[\x02\x08]\0.\0(?:[A-Z]{2}|.[\0-\x03]\0\0)|\0[\x02\x08]\0.[A-Z]{2}", re.DOTALL
)
_TIFF_PHOTOMETRIC = 262
_TIFF_WHITE_IS_ZERO = 0


def read_image(image: ImageInput, size: int) -> np.ndarray:
    """Return an image as uint8 greyscale [size, size], black 0 and white 255.

    The aspect ratio is preserved: the longer side is scaled to ``size`` (antialiased) and the
    shorter one is padded with black on both sides, so nothing is cropped. The values of 16-bit,
    integer and floating-point images are scaled so that the minimum is black and the maximum is
    white. Transparent pixels are black. DICOM is rendered as its header specifies (see
    `raymed.data.dicom`). The format is detected from the content, not from the file name.

    Args:
        image: A PNG, JPEG, TIFF or DICOM file or its content, or greyscale pixels, uint8 [height,
            width].
        size: Side of the result in pixels.

    Raises:
        ImageError: The file is missing, unreadable, not an image, truncated or too large.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 2 or 0 in image.shape:
            raise ImageError(
                f"pixels are not uint8 [height, width]: found {image.dtype} {list(image.shape)}"
            )
        if image.shape == (size, size):
            return image
        return _fit(Image.fromarray(image), size)
    with _decoding():
        start = _start(image)
        if start[DICOM_MARK] == b"DICM" or _BARE_DICOM.match(start):
            # Imported here because pydicom is slow to import, and only DICOM needs it.
            from raymed.data.dicom import read_dicom

            with _as_file(image) as path:
                return _fit(read_dicom(path), size)
        source: BytesIO | Path = BytesIO(image) if isinstance(image, bytes) else image
        with Image.open(source, formats=_FORMATS) as opened:
            refuse_bomb(opened.width, opened.height)
            ImageOps.exif_transpose(opened, in_place=True)
            return _fit(_greyscale(opened, _is_white_zero(opened)), size)


def read_pillow_image(image: Image.Image, size: int) -> np.ndarray:
    """Return an image that Pillow has opened or made, as `read_image` returns an image file.

    The image itself is not changed.

    Raises:
        ImageError: It is truncated, damaged or too large.
    """
    with _decoding():
        refuse_bomb(image.width, image.height)
        upright = ImageOps.exif_transpose(image)
        return _fit(_greyscale(upright, _is_white_zero(image)), size)


@contextmanager
def _decoding() -> Iterator[None]:
    """Raise any error of decoding an image inside the block as an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"image file not found: {error.filename}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"image is too large: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError("not a PNG, JPEG, TIFF or DICOM image") from error
    # On damaged data, Pillow's decoders raise almost anything (OSError, SyntaxError, struct.error,
    # IndexError, ...), and one bad file must not stop the preparation of all others.
    except Exception as error:
        raise ImageError(f"image cannot be decoded: {error or type(error).__name__}") from error


def _start(image: Path | bytes) -> bytes:
    if isinstance(image, bytes):
        return image[: DICOM_MARK.stop]
    with image.open("rb") as file:
        return file.read(DICOM_MARK.stop)


@contextmanager
def _as_file(image: Path | bytes) -> Iterator[Path]:
    """Provide a file, for the decoder that runs in a process of its own."""
    if isinstance(image, Path):
        yield image
        return
    with NamedTemporaryFile(suffix=".dcm") as file:
        file.write(image)
        file.flush()
        yield Path(file.name)


def _is_white_zero(image: Image.Image) -> bool:
    """Whether this is a TIFF image whose value 0 is white."""
    return bool(getattr(image, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == _TIFF_WHITE_IS_ZERO)


def _greyscale(image: Image.Image, white_zero: bool) -> Image.Image:
    """Convert a decoded image to mode L."""
    if image.mode[0] in "IF":
        return _full_range(image, white_zero)
    if image.mode in ("1", "L"):
        return image.convert("L")
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        black = Image.new("RGBA", colour.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, colour).convert("L")
    return image.convert("RGB").convert("L")


def _full_range(image: Image.Image, white_zero: bool) -> Image.Image:
    """Convert a 16-bit, integer or floating-point image to mode L, scaled by its range."""
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ImageError("image has non-finite values")
    low, high = values.min(), values.max()
    if low == high:
        return Image.new("L", image.size)
    scaled = (values - low) / (high - low)
    # Pillow itself inverts white-is-zero TIFFs of 8 bits, but not deeper ones.
    if white_zero:
        scaled = 1 - scaled
    return Image.fromarray(np.rint(scaled * 255).astype(np.uint8))


def _fit(image: Image.Image, size: int) -> np.ndarray:
    """Scale a mode L image to fit [size, size], centred on black."""
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    canvas = Image.new("L", (size, size))
    canvas.paste(
        image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0),
        ((size - width) // 2, (size - height) // 2),
    )
    return np.array(canvas)
