import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.sequence import Sequence
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from raymed.data.images import ImageError, read_image
from tests.support.dicom_files import IDENTITY, dataset, saved

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
DEEP = (np.random.default_rng(0).integers(0, 4096, (16, 16))).astype(np.uint16)


def shown(folder: Path, pixels: np.ndarray, **elements: object) -> np.ndarray:
    return read_image(saved(folder / "image", dataset(pixels, **elements)), pixels.shape[-1])


def window_by_hand(value: float, centre: float, width: float) -> float:
    """PS3.3 C.11.2.1.2.1, as it is written there, for an output of 0 to 1."""
    if value <= centre - 0.5 - (width - 1) / 2:
        return 0.0
    if value > centre - 0.5 + (width - 1) / 2:
        return 1.0
    return (value - (centre - 0.5)) / (width - 1) + 0.5


def rounded(grey: list[float]) -> np.ndarray:
    return np.array([round(255 * one) for one in grey]).reshape(16, 16)


def test_eight_bits_are_as_they_are_and_monochrome1_is_inverted(tmp_path: Path) -> None:
    np.testing.assert_array_equal(shown(tmp_path, RAMP), RAMP)
    inverted = shown(tmp_path, RAMP, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(inverted, 255 - RAMP)


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (0.7, 12.5), (-2, 300)])
@pytest.mark.parametrize(("centre", "width"), [(40, 400), (-600.5, 1500), (1000, 1)])
def test_rescale_and_window(
    tmp_path: Path, kind: str, slope: float, intercept: float, centre: float, width: float
) -> None:
    grey = [
        window_by_hand(slope * float(value) + intercept, centre, width) for value in DEEP.ravel()
    ]
    expected = rounded([1 - one if kind == "MONOCHROME1" else one for one in grey])
    found = shown(
        tmp_path,
        DEEP,
        BitsStored=12,
        HighBit=11,
        PhotometricInterpretation=kind,
        RescaleSlope=slope,
        RescaleIntercept=intercept,
        WindowCenter=[centre, 7],  # the first of several views is taken
        WindowWidth=[width, 9],
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
def test_the_other_windows(tmp_path: Path, function: str) -> None:
    def grey(value: float) -> float:
        if function == "SIGMOID":
            return 1 / (1 + math.exp(-4 * (value - 2000) / 1500))
        return min(1.0, max(0.0, (value - 2000) / 1500 + 0.5))

    found = shown(tmp_path, DEEP, WindowCenter=2000, WindowWidth=1500, VOILUTFunction=function)
    np.testing.assert_array_equal(found, rounded([grey(float(value)) for value in DEEP.ravel()]))


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_signed_values_without_a_window_fill_the_range(tmp_path: Path, syntax: UID) -> None:
    signed = DEEP.astype(np.int16) - 2000
    made = dataset(signed, RescaleSlope=2, RescaleIntercept=5)
    made.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        made.PixelData = signed.astype(">i2").tobytes()
    low, high = int(signed.min()), int(signed.max())
    expected = rounded([(int(value) - low) / (high - low) for value in signed.ravel()])
    np.testing.assert_array_equal(read_image(saved(tmp_path / "i", made), 16), expected)


def test_bits_beyond_those_stored_are_no_brightness(tmp_path: Path) -> None:
    plain = shown(tmp_path, DEEP, BitsStored=12, HighBit=11)
    overlaid = shown(tmp_path, DEEP | 0x4000, BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(overlaid, plain)
    assert plain.min() == 0
    assert plain.max() == 255


def test_padding_is_black_and_does_not_count(tmp_path: Path) -> None:
    padded = DEEP.astype(np.int16)
    padded[:, :4] = -2000
    for kind in ("MONOCHROME1", "MONOCHROME2"):
        found = shown(tmp_path, padded, PixelPaddingValue=-2000, PhotometricInterpretation=kind)
        assert not found[:, :4].any()
        np.testing.assert_array_equal(
            found[:, 4:], shown_range(padded[:, 4:], inverted=kind == "MONOCHROME1")
        )
    ranged = padded.copy()
    ranged[0, :4] = -1990
    again = shown(tmp_path, ranged, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1990)
    assert not again[:, :4].any()
    flat = shown(tmp_path, np.full((16, 16), -2000, np.int16), PixelPaddingValue=-2000)
    assert not flat.any()


def shown_range(values: np.ndarray, inverted: bool) -> np.ndarray:
    grey = (values - float(values.min())) / (float(values.max()) - float(values.min()))
    return np.rint(255 * (1 - grey if inverted else grey))


def lookup(entries: list[int], first: int, bits: int, packed: bool) -> Sequence:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.LUTData = np.array(entries, "<u2").tobytes() if packed else entries
    item["LUTData"].VR = "OW" if packed else "US"
    return Sequence([item])


@pytest.mark.parametrize("packed", [True, False])
def test_lookup_tables(tmp_path: Path, packed: bool) -> None:
    modality = [5 * n for n in range(100)]
    voi = [min(4095, n * n) for n in range(300)]
    grey = []
    for value in DEEP.ravel():
        after = modality[min(99, max(0, int(value) - 1000))]
        grey.append(voi[min(299, max(0, after - 50))] / 4095)
    found = shown(
        tmp_path,
        DEEP,
        ModalityLUTSequence=lookup(modality, 1000, 16, packed),
        VOILUTSequence=lookup(voi, 50, 12, packed),
        WindowCenter=1,
        WindowWidth=1,
    )
    np.testing.assert_array_equal(found, rounded(grey))


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("syntax", [None, RLELossless])
def test_the_middle_frame_is_taken(tmp_path: Path, frames: int, syntax: UID | None) -> None:
    pixels = np.stack([np.roll(RAMP, number, axis=0) for number in range(frames)])
    made = dataset(pixels)
    if syntax:
        made.compress(syntax, generate_instance_uid=False)
    found = read_image(saved(tmp_path / "i", made), 16)
    np.testing.assert_array_equal(found, pixels[{1: 0, 2: 1, 5: 2}[frames]])


def test_an_enhanced_file_has_a_window_for_each_frame(tmp_path: Path) -> None:
    def group(**elements: object) -> Dataset:
        made = Dataset()
        for sequence, values in elements.items():
            item = Dataset()
            for name, value in values.items():  # type: ignore[attr-defined]
                setattr(item, name, value)
            setattr(made, sequence, Sequence([item]))
        return made

    windows = [{"WindowCenter": 100 * n, "WindowWidth": 300} for n in range(1, 4)]
    found = shown(
        tmp_path,
        np.stack([DEEP] * 3),
        SharedFunctionalGroupsSequence=Sequence(
            [group(PixelValueTransformationSequence={"RescaleSlope": 0.1, "RescaleIntercept": 3})]
        ),
        PerFrameFunctionalGroupsSequence=Sequence(
            [group(FrameVOILUTSequence=window) for window in windows]
        ),
    )
    grey = [window_by_hand(0.1 * float(value) + 3, 200, 300) for value in DEEP.ravel()]
    np.testing.assert_array_equal(found, rounded(grey))


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("signed", [False, True])
def test_lossless_compression_changes_nothing(tmp_path: Path, syntax: UID, signed: bool) -> None:
    pixels = np.tile(DEEP.astype(np.int16) - 2048 if signed else DEEP, (4, 4))
    plain = shown(tmp_path, pixels)
    made = dataset(pixels)
    made.compress(syntax, generate_instance_uid=False)
    np.testing.assert_array_equal(read_image(saved(tmp_path / "i", made), 64), plain)


def file(name: str) -> Path:
    """A file that comes with pydicom."""
    found = get_testdata_file(name, download=False)
    assert isinstance(found, str), name
    return Path(found)


@pytest.mark.parametrize(
    ("compressed", "plain", "tolerance"),
    [
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm", 0),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm", 0),
        ("MR_small_RLE.dcm", "MR_small.dcm", 0),
        ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm", 0),  # JPEG lossless, first-order
        ("SC_rgb_jls_lossy_line.dcm", "SC_rgb_rle.dcm", 2),
        ("SC_rgb_jls_lossy_sample.dcm", "SC_rgb_rle.dcm", 2),
        ("SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_rle.dcm", 3),  # JPEG baseline
        ("SC_ybr_full_422_uncompressed.dcm", "SC_rgb_rle.dcm", 3),
    ],
)
def test_compressed_syntaxes(compressed: str, plain: str, tolerance: int) -> None:
    found, expected = (read_image(file(name), 64).astype(int) for name in (compressed, plain))
    assert np.abs(found - expected).max() <= tolerance
    assert expected.std() > 30


def test_colours_are_reduced_to_luma(tmp_path: Path) -> None:
    colours = np.zeros((16, 16, 3), np.uint8)
    colours[:8], colours[8:] = (200, 30, 90), (10, 240, 60)
    made = dataset(RAMP, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    made.PixelData = colours.tobytes()
    expected = colours @ np.array([0.299, 0.587, 0.114])
    found = read_image(saved(tmp_path / "i", made), 16).astype(float)
    assert np.abs(found - expected).max() <= 1
    palette = dataset(RAMP, PhotometricInterpretation="PALETTE COLOR")
    for colour, table in (("Red", RAMP[::-1]), ("Green", RAMP), ("Blue", RAMP * 0)):
        setattr(palette, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        words = table.ravel().astype("<u2") * 257
        setattr(palette, f"{colour}PaletteColorLookupTableData", words.tobytes())
    red, green = RAMP[::-1].ravel()[RAMP].astype(float), RAMP.astype(float)
    found = read_image(saved(tmp_path / "p", palette), 16).astype(float)
    assert np.abs(found - (0.299 * red + 0.587 * green)).max() <= 1


def bomb(kind: str) -> Dataset:
    """A small file that says its image is 60,000 x 60,000."""
    if kind == "header":
        return dataset(RAMP, Rows=60_000, Columns=60_000)
    if kind == "frames":
        return dataset(RAMP, NumberOfFrames=2_000_000_000)
    made = dcmread(file("JPEG2000.dcm" if kind == "jpeg2000" else "SC_rgb_jpeg_dcmtk.dcm"))
    frame = bytearray(made.PixelData)
    if kind == "jpeg2000":
        assert made.file_meta.TransferSyntaxUID == JPEG2000
        size = frame.index(b"\xff\x4f\xff\x51")
        frame[size + 8 : size + 16] = (60_000).to_bytes(4, "big") * 2
    else:
        assert made.file_meta.TransferSyntaxUID == JPEGBaseline8Bit
        size = frame.index(b"\xff\xc0")
        frame[size + 5 : size + 9] = (60_000).to_bytes(2, "big") * 2
    made.PixelData = bytes(frame)
    return made


@pytest.mark.parametrize("kind", ["header", "frames", "jpeg2000", "jpeg"])
def test_bombs_are_refused_before_they_go_off(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path / "i", bomb(kind))
    tracemalloc.start()
    reasons = {"header": "too large: 60000 x 60000", "frames": "decoded"}
    with pytest.raises(ImageError, match=reasons.get(kind, "differs in size")):
        read_image(path, 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_a_box_without_length_is_no_endless_loop(tmp_path: Path) -> None:
    made = dcmread(file("JPEG2000.dcm"))
    boxes = b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x08free"
    frame = get_frame(made.PixelData, 0, number_of_frames=1)
    for length, reason in ((8, "or its pixels are damaged"), (0, "a JPEG 2000 box has no length")):
        last = length.to_bytes(4, "big") + b"free" + b"\0\0\0\0jp2c"
        made.PixelData = encapsulate([boxes + last + frame])
        with pytest.raises(ImageError, match=reason):
            read_image(saved(tmp_path / "i", made), 64)


def test_a_truncated_jpeg_ls_file_is_refused_and_the_next_one_is_read(tmp_path: Path) -> None:
    good = file("MR_small_jpeg_ls_lossless.dcm")
    content = good.read_bytes()
    first, end = content.index(b"\xff\xd8"), content.rindex(b"\xff\xd9")
    # Of the compressed image, a tenth, half and all but the last marker.
    for left in ((end - first) // 10, (end - first) // 2, end - first):
        (tmp_path / "cut.dcm").write_bytes(content[: first + left])
        with pytest.raises(ImageError, match="DICOM image cannot be decoded"):
            read_image(tmp_path / "cut.dcm", 64)
    assert read_image(good, 64).std() > 30


def test_a_decoder_that_crashes_takes_nothing_with_it(tmp_path: Path) -> None:
    good = file("SC_rgb_jpeg_gdcm.dcm")
    content = good.read_bytes()
    first = content.index(b"\xff\xd8") + 20
    rng = np.random.default_rng(0)
    reasons = set()
    while not any("crashed" in reason for reason in reasons):
        damaged = np.frombuffer(content, np.uint8).copy()
        damaged[rng.integers(first, len(content), 8)] = rng.integers(0, 256, 8)
        (tmp_path / "damaged").write_bytes(damaged.tobytes())
        try:
            read_image(tmp_path / "damaged", 16)
        except ImageError as error:
            reasons.add(str(error))
    assert read_image(good, 64).std() > 30


def test_a_deflated_file_is_not_inflated(tmp_path: Path) -> None:
    made = dataset(RAMP)
    made.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    with pytest.raises(ImageError, match="syntax is not supported: Deflated Explicit"):
        read_image(saved(tmp_path / "i", made), 16)


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"Rows": None}, "DICOM file has no image"),
        ({"WindowCenter": 1, "WindowWidth": 9, "VOILUTFunction": "Zebrowski"}, "unknown function"),
        ({"PhotometricInterpretation": "Zebrowski"}, "cannot be decoded"),
        ({"PhotometricInterpretation": "YBR_PARTIAL_420"}, "neither monochrome nor"),
        ({"SamplesPerPixel": 9}, "too large"),
        ({"BitsAllocated": 7}, r"or its pixels are damaged \(Explicit VR Little Endian\)"),
        ({"BitsAllocated": None, "BitsStored": None}, "lacks the number of bits per pixel"),
    ],
)
def test_what_cannot_be_shown_says_why(
    tmp_path: Path, elements: dict[str, object], reason: str
) -> None:
    with pytest.raises(ImageError, match=reason) as raised:
        shown(tmp_path, RAMP, **elements)
    assert "Zebrowski" not in str(raised.value)


def test_files_that_are_no_image_or_of_an_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no image"):
        read_image(file("test-SR.dcm"), 16)
    made = dataset(RAMP)
    made.PixelData = encapsulate([RAMP.tobytes()])
    made.file_meta.TransferSyntaxUID = UID("1.2.840.99999.7734518")
    path = tmp_path / "i"
    made.save_as(path, enforce_file_format=True, implicit_vr=False, little_endian=True)
    with pytest.raises(
        ImageError, match="DICOM transfer syntax is not supported: unknown"
    ) as raised:
        read_image(path, 16)
    assert "7734518" not in str(raised.value)


def test_any_damage_is_one_bad_image_that_names_nobody(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    compressed = dataset(np.tile(DEEP, (4, 4)))
    compressed.compress(JPEG2000Lossless, generate_instance_uid=False)
    contents = [
        saved(tmp_path / "whole", made).read_bytes() for made in (dataset(DEEP), compressed)
    ]
    reasons = []
    for content in contents:
        for cut in range(1, len(content), 1 + len(content) // 150):
            flipped = np.frombuffer(content, np.uint8).copy()
            flipped[rng.integers(132, len(content), 8)] ^= 0xFF
            damaged = content[:-cut] if rng.integers(2) else flipped.tobytes()
            (tmp_path / "damaged").write_bytes(damaged)
            try:
                read_image(tmp_path / "damaged", 16)
            except ImageError as error:
                reasons.append(str(error))
    assert len(reasons) > 100
    assert not any(value in reason for value in IDENTITY.values() for reason in reasons)
