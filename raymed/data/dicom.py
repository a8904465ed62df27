"""Decoding a DICOM file to greyscale, as a viewer would display it.

Only the header elements that describe pixels are read, never those that identify the patient. Error
messages contain no text from the file, because they are stored in the prepared dataset.
"""

import logging
import math
import os
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from pydicom import config, dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset, read_preamble
from pydicom.pixels import apply_color_lut, pixel_array
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from raymed.data.limits import ImageError, refuse_bomb
from raymed.data.subprocess_decoder import decode_in_subprocess

# Real files often violate details of the standard, and pydicom's warnings would quote them.
config.settings.reading_validation_mode = config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

_PALETTE = [
    f"{prefix}{colour}PaletteColorLookupTable{what}"
    for colour in ("Red", "Green", "Blue")
    for prefix, what in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
]
_ELEMENTS = [
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames"),
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *_PALETTE,
]
# Not the deflated syntax, because pydicom inflates the whole file at once, whatever its size.
_PLAIN = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
# On damaged files, pylibjpeg's RLE decoder panics; these only raise errors.
_PLUGINS = {
    **dict.fromkeys((JPEGBaseline8Bit, JPEGExtended12Bit), "pillow"),
    **dict.fromkeys(
        (JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K), "pylibjpeg"
    ),
    RLELossless: "pydicom",
}
_META_GROUP = 2
# GDCM alone reads these on every Python that raymed supports; it crashes on damaged files.
_IN_SUBPROCESS = (JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless)
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
_UNDEFINED_LENGTH = 0xFFFFFFFF
_JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


def read_dicom(path: Path) -> Image.Image:
    """Return the image of a DICOM file in mode L, black 0 and white 255.

    Stored values pass through the modality lookup table or the rescale slope and intercept, then
    through the first VOI lookup table or window. Without one, or with a window width that the
    standard does not allow, the minimum is black and the maximum is white. MONOCHROME1 is inverted,
    padding is black, and colours are reduced to luma.

    A deficient header is interpreted as common readers do: a missing preamble, a missing transfer
    syntax (inferred from the encoding of the first element), a missing photometric interpretation
    (MONOCHROME2 or RGB), a slope of 0 (read as 1).

    Of several frames, the middle one is used: a series begins and ends at the edge of the examined
    region, and a cine loop before and after the event of interest.

    Raises:
        ImageError: There is no image, or it is too large, damaged or of an unsupported kind.
        FileNotFoundError: The file does not exist.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _read(path)


def _read(path: Path) -> Image.Image:
    name = "unknown transfer syntax"
    try:
        with path.open("rb") as file:
            syntax = _syntax(file)
            # Only names listed in the standard; any other would be text from the file.
            name = syntax.name if syntax and syntax.is_transfer_syntax else name
            if syntax and syntax not in (*_IN_SUBPROCESS, *_PLUGINS, *_PLAIN):
                raise ImageError(f"DICOM transfer syntax is not supported: {name}")
            file.seek(0)
            header = dcmread(
                file, stop_before_pixels=True, specific_tags=list(_ELEMENTS), force=True
            )
            if "Rows" not in header or "Columns" not in header:
                raise ImageError("DICOM file has no image")
            length = _pixel_length(header, file, syntax)
            syntax = syntax or _infer_syntax(header, length)
            options = {"transfer_syntax_uid": syntax, **_fill_in_defaults(header)}
            frames = int(header.get("NumberOfFrames") or 1)
            frame = frames // 2
            _check_sizes(header, file, syntax, frame, frames)
            if syntax in _IN_SUBPROCESS:
                pixels = decode_in_subprocess(path, frame, options)
            else:
                plugin = _PLUGINS[syntax] if syntax.is_encapsulated else ""
                pixels = pixel_array(file, index=frame, decoding_plugin=plugin, **options)
        return _to_greyscale(pixels, header, frame)
    except (ImageError, FileNotFoundError):
        raise
    # On damaged files, pydicom and its decoders raise almost anything, quoting the file.
    except Exception:
        raise ImageError(
            f"DICOM image cannot be decoded: its header or its pixels are damaged ({name})"
        ) from None


def _syntax(file: BinaryIO) -> UID | None:
    """Return the transfer syntax that a file names; only the first group of elements is read."""
    read_preamble(file, force=True)
    meta = read_dataset(
        file, False, True, stop_when=lambda tag, _type, _length: tag >> 16 != _META_GROUP
    )
    return meta.get("TransferSyntaxUID") or None


def _infer_syntax(header: Dataset, length: int) -> UID:
    """Infer the transfer syntax of a file that names none, from the encoding of its elements."""
    if length == _UNDEFINED_LENGTH:
        raise ImageError("DICOM file names no transfer syntax, but its pixels are compressed")
    implicit, little = header.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _pixel_length(header: Dataset, file: BinaryIO, syntax: UID | None) -> int:
    """Read the declared length of the pixel data; ``file`` is positioned before its element."""
    implicit, little = header.original_encoding
    start = file.read(8 if implicit else 12)
    length = int.from_bytes(start[-4:], "little" if little else "big")
    if len(start) < 8 or length == 0:
        raise ImageError("DICOM file has no pixels")
    left = os.fstat(file.fileno()).st_size - file.tell()
    if left < length and not (length == _UNDEFINED_LENGTH or (syntax and syntax.is_encapsulated)):
        raise ImageError(f"DICOM image is truncated: it has {left:,} of {length:,} bytes of pixels")
    return length


def _fill_in_defaults(header: Dataset) -> dict[str, Any]:
    """Fill in missing header elements with defaults, and return them as pydicom options."""
    if header.get("BitsAllocated") is None:
        raise ImageError("DICOM header lacks the number of bits per pixel (BitsAllocated)")
    samples = header.get("SamplesPerPixel") or 1
    values = {
        "SamplesPerPixel": samples,
        "PhotometricInterpretation": "MONOCHROME2" if samples == 1 else "RGB",
        "PlanarConfiguration": 0,
        "BitsStored": header.BitsAllocated,
        "PixelRepresentation": 0,
    }
    options = {}
    for name, value in values.items():
        if header.get(name) in (None, ""):
            setattr(header, name, value)
            options[_snake(name)] = value
    return options


def _snake(name: str) -> str:
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name)[1:]


def _check_sizes(header: Dataset, file: BinaryIO, syntax: UID, frame: int, frames: int) -> None:
    """Raise ImageError if the pixels would be too large; ``file`` is positioned at the pixels.

    A compressed frame has its own header, which is the one that decoders trust.
    """
    declared = header.Columns, header.Rows, header.SamplesPerPixel
    refuse_bomb(*declared)
    if syntax.is_encapsulated:
        offsets = None
        if "ExtendedOffsetTable" in header and "ExtendedOffsetTableLengths" in header:
            offsets = (header.ExtendedOffsetTable, header.ExtendedOffsetTableLengths)
        data = get_frame(file, frame, number_of_frames=frames, extended_offsets=offsets)
        if _frame_size(data) not in (declared, None):
            raise ImageError("DICOM image differs in size from the header of the file")


def _frame_size(frame: bytes) -> tuple[int, int, int] | None:
    """Return width, height and samples that a JPEG, JPEG-LS or JPEG 2000 frame declares."""

    def number(at: int, length: int) -> int:
        return int.from_bytes(frame[at : at + length], "big")

    if frame.startswith(_JP2):
        at = len(_JP2)
        while at < len(frame) and frame[at + 4 : at + 8] != b"jp2c":
            if number(at, 4) < 8:
                # pydicom would read the same box forever.
                raise ImageError("DICOM image is damaged: a JPEG 2000 box has no length")
            at += number(at, 4)
    if frame[:2] != b"\xff\xd8":
        size = frame.find(b"\xff\x4f\xff\x51")
        if size < 0:
            return None
        width, height = (number(size + at, 4) - number(size + at + 8, 4) for at in (8, 12))
        return width, height, number(size + 40, 2)
    at = 2
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        if frame[at + 1] in _START_OF_FRAME:
            return number(at + 7, 2), number(at + 5, 2), frame[at + 9]
        at += 1 if frame[at + 1] == 0xFF else 2 + number(at + 2, 2)
    return None


def _to_greyscale(pixels: np.ndarray, header: Dataset, frame: int) -> Image.Image:
    kind = header.PhotometricInterpretation
    if kind == "PALETTE COLOR" and pixels.ndim == 2:
        colours = apply_color_lut(pixels, header)
        return _luma(colours, 8 * colours.dtype.itemsize)
    if kind in _COLOURS and pixels.ndim == 3:
        return _luma(pixels, header.BitsStored)
    if kind in ("MONOCHROME1", "MONOCHROME2") and pixels.ndim == 2:
        return Image.fromarray(_monochrome(pixels, _of_frame(header, frame)))
    raise ImageError("DICOM image is neither monochrome nor of a known colour space")


def _luma(colours: np.ndarray, bits: int) -> Image.Image:
    return Image.fromarray((colours >> max(0, bits - 8)).astype(np.uint8)).convert("L")


def _of_frame(header: Dataset, frame: int) -> Dataset:
    """Add the values that an enhanced multi-frame file stores per file or frame to the header."""
    groups = [*header.get("SharedFunctionalGroupsSequence", [])[:1]]
    groups += header.get("PerFrameFunctionalGroupsSequence", [])[frame : frame + 1]
    for group in groups:
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in group.get(name, [])[:1]:
                header.update(item)
    return header


def _monochrome(pixels: np.ndarray, header: Dataset) -> np.ndarray:
    """Convert stored values [height, width] to uint8 grey."""
    padding = _padding(pixels, header)
    visible = pixels[~padding]
    if not np.isfinite(visible).all():
        raise ImageError("image has non-finite values")
    grey = np.zeros(pixels.shape, np.uint8)
    if visible.size == 0:
        return grey
    low, high = visible.min(), visible.max()
    if np.issubdtype(pixels.dtype, np.integer) and int(high) - int(low) < 2**16:
        # Compute each possible value once, rather than once per pixel.
        levels = _grey(np.arange(int(low), int(high) + 1, dtype=np.float64), header)
        grey[~padding] = levels[np.subtract(visible, low, dtype=np.int64)]
    else:
        grey[~padding] = _grey(visible.astype(np.float64), header)
    return grey


def _padding(pixels: np.ndarray, header: Dataset) -> np.ndarray:
    """Return which pixels are padding, bool [height, width]."""
    if header.get("PixelPaddingValue") is None:
        return np.zeros(pixels.shape, bool)
    ends = [header.PixelPaddingValue, header.get("PixelPaddingRangeLimit")]
    first, last = min(e for e in ends if e is not None), max(e for e in ends if e is not None)
    padding: np.ndarray = (pixels >= first) & (pixels <= last)
    return padding


def _grey(values: np.ndarray, header: Dataset) -> np.ndarray:
    """Convert stored values (float64, any shape) to uint8 grey, by PS3.3 C.11.1 and C.11.2."""
    if header.get("ModalityLUTSequence"):
        values = _look_up(values, header.ModalityLUTSequence[0])[0]
    else:
        slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
        values = values * float(slope or 1) + float(intercept or 0)
    if header.get("VOILUTSequence"):
        entries, bits = _look_up(values, header.VOILUTSequence[0])
        shown = np.clip(entries / (2.0**bits - 1), 0, 1)
    elif window := _allowed_window(header):
        shown = _window(values, *window)
    else:
        low, high = values.min(), values.max()
        if low == high:
            return np.zeros(values.shape, np.uint8)
        shown = (values - low) / (high - low)
    if header.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    return np.rint(shown * 255).astype(np.uint8)


def _look_up(values: np.ndarray, item: Dataset) -> tuple[np.ndarray, int]:
    """Apply a lookup table, clamped at its ends; return float64 and the bits per entry."""
    count, first, bits = item.LUTDescriptor
    data: Any = item.LUTData
    if isinstance(data, bytes):
        little = item.is_little_endian is not False
        count = count or 2**16
        data = np.frombuffer(data, "u1" if len(data) < 2 * count else "<u2" if little else ">u2")
    entries = np.atleast_1d(np.asarray(data, np.float64))[: count or 2**16]
    indices = np.clip(np.rint(values) - first, 0, len(entries) - 1).astype(np.int64)
    return entries[indices], bits


def _allowed_window(header: Dataset) -> tuple[float, float, str] | None:
    """Return centre, width and function of the first window, if PS3.3 C.11.2.1 allows it."""
    centre, width = (_first(header, f"Window{name}") for name in ("Center", "Width"))
    function = str(header.get("VOILUTFunction") or "LINEAR").upper()
    if centre is None or width is None or width <= 0 or (function == "LINEAR" and width < 1):
        return None
    return centre, width, function


def _window(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """Apply a window; return values from 0 to 1."""
    if function == "LINEAR":
        if width == 1:
            return (values > centre - 0.5).astype(np.float64)
        return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    raise ImageError("DICOM window has an unknown function")


def _first(header: Dataset, name: str) -> float | None:
    """Return the first number of an element; None if it is missing or not finite."""
    try:
        value = header.get(name)
        number = float(value if isinstance(value, str | int | float) else value[0])
    except (ValueError, TypeError, IndexError):
        return None
    return number if math.isfinite(number) else None
