"""DICOM files that lack what the standard asks for: read as its readers do, or said in words."""

from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from raymed.data.images import ImageError, read_image
from tests.support.dicom_files import dataset, saved

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
DEEP = (np.random.default_rng(0).integers(0, 4096, (16, 16))).astype(np.uint16)


@pytest.mark.parametrize(
    "elements",
    [
        {"WindowCenter": 100, "WindowWidth": 0},
        {"WindowCenter": 100, "WindowWidth": -5},
        {"WindowCenter": 100, "WindowWidth": 0.5},
        {"WindowCenter": 100, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": 100},
        {"RescaleSlope": 0, "RescaleIntercept": 0},
        {"PhotometricInterpretation": None},
        {"SamplesPerPixel": None, "BitsStored": None, "PixelRepresentation": None},
    ],
)
def test_what_a_header_lacks_or_may_not_say_is_as_if_not_said(
    tmp_path: Path, elements: dict[str, object]
) -> None:
    expected = np.rint(255 * ((DEEP - DEEP.min()) / np.ptp(DEEP)))
    np.testing.assert_array_equal(
        read_image(saved(tmp_path / "i", dataset(DEEP, **elements)), 16), expected
    )
    assert expected.std() > 30


def test_a_window_that_is_no_number_is_none(tmp_path: Path) -> None:
    path = saved(tmp_path / "i", dataset(RAMP, WindowCenter="77.25", WindowWidth="33.75"))
    content = path.read_bytes()
    assert content.count(b"33.75") == 1
    path.write_bytes(content.replace(b"33.75", b"wide "))
    np.testing.assert_array_equal(read_image(path, 16), RAMP)


@pytest.mark.parametrize("kept", ["no meta", "meta", "meta without syntax"])
@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_files_without_preamble_or_syntax(tmp_path: Path, kept: str, syntax: UID) -> None:
    made = dataset(DEEP)
    plain = read_image(saved(tmp_path / "plain", made), 16)
    made.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        made.PixelData = DEEP.astype(">u2").tobytes()
    whole = saved(tmp_path / "whole", made).read_bytes()
    meta_end = 144 + int.from_bytes(whole[140:144], "little")
    named = whole.index(b"\x02\0\x10\0UI")
    after = named + 8 + int.from_bytes(whole[named + 6 : named + 8], "little")
    contents = {
        "no meta": whole[meta_end:],
        "meta": whole[132:],
        "meta without syntax": whole[:named] + whole[after:],
    }
    (tmp_path / "bare").write_bytes(contents[kept])
    np.testing.assert_array_equal(read_image(tmp_path / "bare", 16), plain)
    assert plain.std() > 30


def test_compressed_pixels_in_a_syntax_that_is_not_named(tmp_path: Path) -> None:
    made = dataset(RAMP)
    made.compress(RLELossless, generate_instance_uid=False)
    whole = saved(tmp_path / "whole", made).read_bytes()
    (tmp_path / "bare").write_bytes(whole[144 + int.from_bytes(whole[140:144], "little") :])
    with pytest.raises(ImageError, match="names no transfer syntax, but its pixels are compressed"):
        read_image(tmp_path / "bare", 16)


def test_pixels_that_are_not_there(tmp_path: Path) -> None:
    made = dataset(DEEP)
    whole = saved(tmp_path / "whole", made).read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-100])
    with pytest.raises(ImageError, match="DICOM image is truncated: it has 412 of 512 bytes"):
        read_image(tmp_path / "cut", 16)
    made.PixelData = b""
    with pytest.raises(ImageError, match="DICOM file has no pixels"):
        read_image(saved(tmp_path / "empty", made), 16)
    del made.PixelData
    with pytest.raises(ImageError, match="DICOM file has no pixels"):
        read_image(saved(tmp_path / "none", made), 16)
