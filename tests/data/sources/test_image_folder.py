from pathlib import Path

import pytest

from raymed.data.limits import ImageError
from raymed.data.sources.image_folder import ImageFolder


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("linked", [False, True])
def test_absolute_paths_below_the_folder_are_the_relative_ones(
    tmp_path: Path, linked: bool
) -> None:
    real = touched(tmp_path / "real", "sub/a.png")
    (tmp_path / "link").symlink_to(real)
    opened, named = (tmp_path / "link", real) if linked else (real, tmp_path / "link")
    for spelled in (opened, named):
        found = ImageFolder(opened).locate(f"{spelled}/sub/../sub/a.png")
        assert (
            found == ImageFolder(opened).locate("sub/a.png") == ("sub/a.png", opened / "sub/a.png")
        )


def test_a_folder_given_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touched(tmp_path / "images", "a.png")
    monkeypatch.chdir(tmp_path)
    folder = ImageFolder(Path("images"))
    assert folder.locate(f"{tmp_path}/images/a.png") == ("a.png", Path("images/a.png"))
    assert folder.locate("../images/a.png")[0] == "a.png"


@pytest.mark.parametrize(
    "name", ["../a.png", "/etc/passwd", "x/../../a.png", ".", "..", r"C:\a.png", r"\\host\a\b.png"]
)
def test_paths_elsewhere(tmp_path: Path, name: str) -> None:
    images = touched(tmp_path / "images", "a.png")
    touched(tmp_path, "a.png", "images-2/a.png")
    for elsewhere in (name, f"{tmp_path}/images-2/a.png", f"{images}\0"):
        with pytest.raises(
            ImageError, match=r"image path is outside the images folder: .* not below"
        ):
            ImageFolder(images).locate(elsewhere)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a", "a.png"),
        ("b", "b.JPeG"),
        ("c", "c"),
        ("1.2.840.7", "1.2.840.7.dcm"),
        ("deep/er/d", "deep/er/d.tiff"),
        ("7", "0007.png"),
        ("00012", "12.dicom"),
        ("0", "000.TIF"),
        ("13", "13.jpg"),
        ("gone", "gone"),
        ("no/folder/a", "no/folder/a"),
        ("e.png", "e.png"),
        ("x" * 300, "x" * 300),
    ],
)
def test_names_without_suffix_or_zeros(tmp_path: Path, name: str, file: str) -> None:
    there = ["a.png", "b.JPeG", "c", "c.png", "1.2.840.7.dcm", "deep/er/d.tiff", "e.png.jpg"]
    there += ["0007.png", "12.dicom", "000.TIF", "13.jpg", "0013.png", "a.txt", "7.txt"]
    folder = ImageFolder(touched(tmp_path, *there))
    assert folder.locate(name) == (name, tmp_path / file)


def test_several_files_are_named(tmp_path: Path) -> None:
    folder = ImageFolder(touched(tmp_path, "a.png", "a.DCM", "07.png", "007.png"))
    for name, files in (("a", "a.DCM, a.png"), ("7", "07.png, 007.png")):
        with pytest.raises(ImageError) as caught:
            folder.locate(name)
        assert str(caught.value) == f"several image files match: {files}"


def test_a_folder_is_listed_once_and_nothing_is_kept_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    touched(tmp_path, *(f"{number:05}.png" for number in range(50)))
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    folder = ImageFolder(tmp_path)
    for number in range(50):
        assert folder.locate(str(number))[1].name == f"{number:05}.png"
    assert listed == [tmp_path]
