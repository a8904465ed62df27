"""The image files that a user gives, by path or by folder."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from raymed.storage import AnyPath

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom")
STARTS = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*")
"""The first bytes of PNG, JPEG and both byte orders of TIFF."""
DICOM_MARK = slice(128, 132)


def is_image_start(start: bytes) -> bool:
    """Whether a file that begins with these bytes is a PNG, JPEG, TIFF or DICOM file."""
    return start.startswith(STARTS) or start[DICOM_MARK] == b"DICM"


class ImageFiles:
    """Iterates over the given files, and over all images in the given folders and their subfolders.

    A file in a folder is an image if it has an image's suffix or an image's first bytes. Hidden
    files and folders, and the folder ``excluded``, are skipped. Each iteration lists the folders
    anew, in the order of names.

    Args:
        given: Files and folders.
        excluded: The folder of results, which may lie in a folder of images.

    Attributes:
        passed_over: The number of files in the folders that were not images, in the last iteration.
        empty: The folders without images, in the last iteration.
    """

    def __init__(self, given: Sequence[str], excluded: AnyPath) -> None:
        self.given = given
        self.excluded = os.path.realpath(excluded) if isinstance(excluded, Path) else None
        self.passed_over = 0
        self.empty: list[str] = []

    def __iter__(self) -> Iterator[Path]:
        self.passed_over, self.empty = 0, []
        for path in map(Path, self.given):
            # Unlike the method of Path, this is False for a name that is too long for a file.
            if not os.path.isdir(path):
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
                if name[0] != "." and os.path.realpath(Path(where, name)) != self.excluded
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
            return is_image_start(file.read(DICOM_MARK.stop))
    except OSError:
        return False
