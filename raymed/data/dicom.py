"""Decoding one DICOM file to greyscale, as a viewer would show it.

Of the header only the elements that describe pixels are read, never those that name the patient,
and no text of the file enters an error's message: a reason is written into the prepared dataset.
"""

import logging
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from pydicom import config, dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import apply_color_lut, get_decoder, pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian

from raymed.data.limits import ImageError, refuse_bomb

# Real files break the standard's small print; a warning for each would quote what is in them.
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
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
_PIXEL_ELEMENT_BYTES = 12
"""Tag, type and length before encapsulated pixel data, which is always explicit."""
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


def read_dicom(path: Path) -> Image.Image:
    """Return the image of a DICOM file in mode L, black 0 and white 255.

    Stored values go through the modality's lookup table or rescale slope and intercept, then
    through the (first) VOI lookup table or window; without one, the least value is black and the
    greatest white. MONOCHROME1 is inverted, padding is black. Colours are reduced to their luma.

    Of several frames the middle one is taken: a series begins and ends at the edge of what is
    examined, a film loop before and after it, and the middle shows it.

    Raises:
        ImageError: there is no image, it is too large, damaged, or of a kind that is not read.
        OSError: the file cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _read(path)


def _read(path: Path) -> Image.Image:
    name = "unknown transfer syntax"
    try:
        syntax = read_file_meta_info(path).TransferSyntaxUID
        if syntax == DeflatedExplicitVRLittleEndian:
            # pydicom inflates the whole file at once, whatever it grows to.
            raise ImageError("deflated DICOM is not read; convert it to another transfer syntax")
        # A name of the standard's list; an unlisted one would be the file's own text.
        name = syntax.name if syntax.is_transfer_syntax else name
        get_decoder(syntax)
        with path.open("rb") as file:
            header = dcmread(file, stop_before_pixels=True, specific_tags=list(_ELEMENTS))
            if "Rows" not in header or "Columns" not in header:
                raise ImageError("DICOM file has no image")
            frames = int(header.get("NumberOfFrames") or 1)
            frame = frames // 2
            _see_sizes(header, file, frame, frames)
            pixels = pixel_array(file, index=frame)
        return _shown(pixels, header, frame)
    except (ImageError, OSError):
        raise
    # Damaged files make pydicom and its decoders raise almost anything, with the file's text in it.
    except Exception as error:
        raise ImageError(f"DICOM image cannot be decoded: {name}: {type(error).__name__}") from None


def _see_sizes(header: Dataset, file: BinaryIO, frame: int, frames: int) -> None:
    """Refuse what would decode to too much; ``file`` stands before the pixels.

    A compressed frame has a header of its own, and decoders believe that one.
    """
    refuse_bomb(header.Columns, header.Rows, header.get("SamplesPerPixel", 1))
    if header.file_meta.TransferSyntaxUID.is_encapsulated:
        file.seek(_PIXEL_ELEMENT_BYTES, 1)
        offsets = None
        if "ExtendedOffsetTable" in header and "ExtendedOffsetTableLengths" in header:
            offsets = (header.ExtendedOffsetTable, header.ExtendedOffsetTableLengths)
        data = get_frame(file, frame, number_of_frames=frames, extended_offsets=offsets)
        refuse_bomb(*_declared(data))


def _declared(frame: bytes) -> tuple[int, int, int]:
    """Width, height and samples that a JPEG, JPEG-LS or JPEG 2000 frame declares; else zeros."""

    def number(at: int, length: int) -> int:
        return int.from_bytes(frame[at : at + length], "big")

    if frame[:2] != b"\xff\xd8":
        size = frame.find(b"\xff\x4f\xff\x51")
        if size < 0:
            return 0, 0, 0
        width, height = (number(size + at, 4) - number(size + at + 8, 4) for at in (8, 12))
        return width, height, number(size + 40, 2)
    at = 2
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        if frame[at + 1] in _START_OF_FRAME:
            return number(at + 7, 2), number(at + 5, 2), frame[at + 9]
        at += 1 if frame[at + 1] == 0xFF else 2 + number(at + 2, 2)
    return 0, 0, 0


def _shown(pixels: np.ndarray, header: Dataset, frame: int) -> Image.Image:
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
    """The header with the values that an enhanced multi-frame file keeps for all or one frame."""
    groups = [*header.get("SharedFunctionalGroupsSequence", [])[:1]]
    groups += header.get("PerFrameFunctionalGroupsSequence", [])[frame : frame + 1]
    for group in groups:
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in group.get(name, [])[:1]:
                header.update(item)
    return header


def _monochrome(pixels: np.ndarray, header: Dataset) -> np.ndarray:
    """Stored values [height, width] as uint8 grey."""
    padding = _padding(pixels, header)
    seen = pixels[~padding]
    if not np.isfinite(seen).all():
        raise ImageError("image has values that are not finite")
    grey = np.zeros(pixels.shape, np.uint8)
    if seen.size == 0:
        return grey
    low, high = seen.min(), seen.max()
    if np.issubdtype(pixels.dtype, np.integer) and int(high) - int(low) < 2**16:
        # Each value that can occur is worked out once, however many pixels have it.
        levels = _grey(np.arange(int(low), int(high) + 1, dtype=np.float64), header)
        grey[~padding] = levels[np.subtract(seen, low, dtype=np.int64)]
    else:
        grey[~padding] = _grey(seen.astype(np.float64), header)
    return grey


def _padding(pixels: np.ndarray, header: Dataset) -> np.ndarray:
    """Where there is no image, only what fills the rectangle up."""
    if header.get("PixelPaddingValue") is None:
        return np.zeros(pixels.shape, bool)
    ends = [header.PixelPaddingValue, header.get("PixelPaddingRangeLimit")]
    first, last = min(e for e in ends if e is not None), max(e for e in ends if e is not None)
    padding: np.ndarray = (pixels >= first) & (pixels <= last)
    return padding


def _grey(values: np.ndarray, header: Dataset) -> np.ndarray:
    """Stored values (float64, any shape) as uint8 grey, by PS3.3 C.11.1 and C.11.2."""
    if header.get("ModalityLUTSequence"):
        values = _look_up(values, header.ModalityLUTSequence[0])[0]
    else:
        slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
        values = values * float(1 if slope is None else slope) + float(intercept or 0)
    if header.get("VOILUTSequence"):
        entries, bits = _look_up(values, header.VOILUTSequence[0])
        shown = np.clip(entries / (2.0**bits - 1), 0, 1)
    elif header.get("WindowCenter") is not None and header.get("WindowWidth") is not None:
        function = str(header.get("VOILUTFunction") or "LINEAR").upper()
        centre, width = _first(header.WindowCenter), _first(header.WindowWidth)
        shown = _window(values, centre, width, function)
    else:
        low, high = values.min(), values.max()
        if low == high:
            return np.zeros(values.shape, np.uint8)
        shown = (values - low) / (high - low)
    if header.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    return np.rint(shown * 255).astype(np.uint8)


def _look_up(values: np.ndarray, item: Dataset) -> tuple[np.ndarray, int]:
    """Values through a lookup table (ends repeat), float64, and the bits of its entries."""
    count, first, bits = item.LUTDescriptor
    data: Any = item.LUTData
    if isinstance(data, bytes):
        little = item.is_little_endian is not False
        count = count or 2**16
        data = np.frombuffer(data, "u1" if len(data) < 2 * count else "<u2" if little else ">u2")
    entries = np.atleast_1d(np.asarray(data, np.float64))[: count or 2**16]
    places = np.clip(np.rint(values) - first, 0, len(entries) - 1).astype(np.int64)
    return entries[places], bits


def _window(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """Values through a window, 0 to 1."""
    if width < 1 and (width <= 0 or function == "LINEAR"):
        raise ImageError(f"DICOM window has a width that is not allowed: {width:g}")
    if function == "LINEAR":
        if width == 1:
            return (values > centre - 0.5).astype(np.float64)
        return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    raise ImageError("DICOM window has an unknown function")


def _first(value: Any) -> float:
    return float(value if isinstance(value, str | int | float) else value[0])
