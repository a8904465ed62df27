"""The image files that a user names, by their paths or by folders of them."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from raymed.storage import AnyPath

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom")
STARTS = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*")
"""First bytes of PNG, JPEG and the two kinds of TIFF."""
DICOM_MARK = slice(128, 132)


class ImageFiles:
    """Paths as they are given, and those of all images in folders and the folders below.

    In a folder a file is an image if its name ends like one's, or if it begins like one. What is
    hidden, and the folder ``apart``, are left out. Files are found anew each time they are gone
    through, in the order of their names.

    Args:
        given: files and folders.
        apart: where results are written, which may lie in a folder of images.

    Attributes:
        passed_over: files of the folders that were no images, the last time.
        empty: folders that had no image, the last time.
    """

    def __init__(self, given: Sequence[str], apart: AnyPath) -> None:
        self.given = given
        self.apart = os.path.realpath(apart) if isinstance(apart, Path) else None
        self.passed_over = 0
        self.empty: list[str] = []

    def __iter__(self) -> Iterator[Path]:
        self.passed_over, self.empty = 0, []
        for path in map(Path, self.given):
            if not path.is_dir():
                yield path
                continue
            found = 0
            for found, file in enumerate(self._below(path), start=1):  # noqa: B007
                yield file
            if not found:
                self.empty.append(str(path))

    def _below(self, folder: Path) -> Iterator[Path]:
        for where, folders, files in os.walk(folder):
            folders[:] = sorted(
                name
                for name in folders
                if name[0] != "." and os.path.realpath(Path(where, name)) != self.apart
            )
            for path in (Path(where, name) for name in sorted(files) if name[0] != "."):
                if _is_image(path):
                    yield path
                else:
                    self.passed_over += 1


def _is_image(path: Path) -> bool:
    if path.suffix.lower() in ENDINGS:
        return True
    try:
        with path.open("rb") as file:
            start = file.read(DICOM_MARK.stop)
    except OSError:
        return False
    return start.startswith(STARTS) or start[DICOM_MARK] == b"DICM"
