import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raymed.data.images import ImageError, read_image


def saved(folder: Path, image: Image.Image, name: str = "image.png", **options: object) -> Path:
    image.save(folder / name, **options)
    return folder / name


GRADIENT = np.arange(256, dtype=np.uint8).reshape(16, 16)


def test_greyscale_of_the_right_size_is_unchanged(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(GRADIENT))
    np.testing.assert_array_equal(read_image(path, 16), GRADIENT)
    np.testing.assert_array_equal(read_image(GRADIENT, 16), GRADIENT)


def test_content_decides_and_not_the_name(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(GRADIENT), "image.jpg", format="PNG")
    np.testing.assert_array_equal(read_image(path, 16), GRADIENT)


@pytest.mark.parametrize(("height", "width"), [(30, 60), (60, 30), (60, 1), (7, 60)])
def test_aspect_ratio_is_kept_and_padding_is_black(height: int, width: int) -> None:
    pixels = read_image(np.full((height, width), 200, np.uint8), 20)
    lit = pixels > 0
    rows, columns = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
    shape = (len(rows), len(columns))
    assert shape == tuple(max(1, round(side * 20 / 60)) for side in (height, width))
    assert (pixels[lit] == 200).all()
    for first, last in ((rows[0], rows[-1]), (columns[0], columns[-1])):
        assert abs(first - (19 - last)) <= 1


def test_shrinking_is_antialiased() -> None:
    checks = np.indices((80, 80)).sum(0) % 2 * 255
    assert np.abs(read_image(checks.astype(np.uint8), 10).astype(int) - 127).max() <= 2


def test_nothing_is_cut_off() -> None:
    image = np.zeros((50, 100), np.uint8)
    image[[0, -1], :] = image[:, [0, -1]] = 255
    pixels = read_image(image, 100)
    assert (pixels[25:75] == image).all()


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_sixteen_bits_fill_the_range(tmp_path: Path, name: str) -> None:
    deep = (1000 + 12 * GRADIENT.astype(np.uint16)).astype(np.uint16)
    np.testing.assert_array_equal(
        read_image(saved(tmp_path, Image.fromarray(deep), name), 16), GRADIENT
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero_tiff_is_inverted(tmp_path: Path, dtype: type) -> None:
    image = Image.fromarray(GRADIENT.astype(dtype))
    path = saved(tmp_path, image, "inverted.tif", tiffinfo={262: 0})
    stored = np.asarray(Image.open(path)).astype(int)
    # Pillow inverts the 8-bit file as it reads it, not the 16-bit one.
    expected = stored if dtype == np.uint8 else 255 - stored
    np.testing.assert_array_equal(read_image(path, 16), expected)


def test_float_tiff_and_a_constant_image(tmp_path: Path) -> None:
    values = GRADIENT.astype(np.float32) / 255 - 3
    path = saved(tmp_path, Image.fromarray(values), "float.tif")
    np.testing.assert_array_equal(read_image(path, 16), GRADIENT)
    flat = saved(tmp_path, Image.fromarray(np.full((4, 4), 70, np.uint16)), "flat.png")
    assert not read_image(flat, 4).any()
    values[0, 0] = np.nan
    with pytest.raises(ImageError, match="non-finite"):
        read_image(saved(tmp_path, Image.fromarray(values), "nan.tif"), 16)


@pytest.mark.parametrize("mode", ["RGB", "P", "CMYK", "YCbCr", "1"])
def test_other_modes_give_the_luma_of_their_colours(tmp_path: Path, mode: str) -> None:
    colours = np.zeros((16, 16, 3), np.uint8)
    colours[:8] = (255, 0, 0) if mode != "1" else (255, 255, 255)
    image = Image.fromarray(colours).convert(mode)
    pixels = read_image(saved(tmp_path, image, "colour.tif"), 16)
    luma = 0.299 * 255 if mode != "1" else 255
    assert np.abs(pixels[:8].astype(int) - luma).max() <= 2
    assert not pixels[9:].any()


def test_cmyk_jpeg(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16), (90, 90, 90)).convert("CMYK")
    pixels = read_image(saved(tmp_path, image, "cmyk.jpg", quality=95), 16)
    assert np.abs(pixels.astype(int) - 90).max() <= 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_places_are_black(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (16, 16), (200, 200, 200, 255))
    image.paste((255, 255, 255, 0), (0, 0, 8, 16))
    pixels = read_image(saved(tmp_path, image.convert(mode)), 16)
    assert not pixels[:, :8].any()
    assert np.abs(pixels[:, 8:].astype(int) - 200).max() <= 3


def test_exif_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, Image.fromarray(GRADIENT), exif=exif)
    np.testing.assert_array_equal(read_image(path, 16), np.rot90(GRADIENT, -1))


def test_unusable_files_say_why(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    cases = {"missing.png": "image file not found", "folder": "cannot be decoded"}
    (tmp_path / "folder").mkdir()
    for name, content in (("text.png", b"no image"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(content)
        cases[name] = "not a PNG, JPEG, TIFF or DICOM image"
    for kind in ("PNG", "JPEG", "TIFF"):
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, kind)
        (tmp_path / f"half.{kind}").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
        cases[f"half.{kind}"] = "decoded|not a PNG"
    for name, reason in cases.items():
        with pytest.raises(ImageError, match=reason):
            read_image(tmp_path / name, 16)


def test_other_formats_and_bombs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="not a PNG"):
        read_image(saved(tmp_path, Image.fromarray(GRADIENT), "image.gif"), 16)
    for side in (9_000, 9_700, 14_000):  # Pillow is silent, warns and raises, in this order
        bomb = saved(tmp_path, Image.new("1", (side, side)), "bomb.png")
        with pytest.raises(ImageError, match="too large"):
            read_image(bomb, 16)


def test_pixels_of_another_kind_are_refused() -> None:
    with pytest.raises(ImageError, match="uint8"):
        read_image(np.zeros((4, 4), np.uint16), 4)
    with pytest.raises(ImageError, match="uint8"):
        read_image(np.zeros((4, 4, 3), np.uint8), 4)
