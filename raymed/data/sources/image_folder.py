"""The folder of a table's images: which file a name in the table means."""

import os
from functools import lru_cache
from pathlib import Path, PureWindowsPath

from raymed.data.limits import ImageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom")
"""Of image files, in lower case; a name that ends in none of them may be a file's without it."""

_FOLDERS = 4096


class ImageFolder:
    """Finds images by name; what it remembers of a folder does not grow with the files there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._absolute = os.path.join(os.path.abspath(folder), "")
        self._real = os.path.join(os.path.realpath(folder), "")
        self._realpath = lru_cache(_FOLDERS)(os.path.realpath)
        self._spellings = lru_cache(_FOLDERS)(_spellings)

    def locate(self, name: str) -> tuple[str, Path]:
        """Return the image's id and its file, which need not be there.

        Args:
            name: a path relative to the folder, or an absolute one that lies below it, also where
                the folder is reached through links. Its id is the relative path in either case.
                Where no file is so named, a name without a known suffix is the only file that has
                one behind it; a number may lack the zeros before it (12 is ``0012.png``).

        Raises:
            ImageError: the path lies elsewhere, or several files could be meant.
        """
        image_id = self._relative(name)
        if image_id is None:
            raise ImageError(
                f"image path leaves the images folder: {name} is not below {self.folder}"
            )
        path = self.folder / image_id
        if path.suffix.lower() in SUFFIXES or os.path.isfile(path):
            return image_id, path
        endings, widths = self._spellings(path.parent)
        stems = [[path.name]]
        if path.name.isascii() and path.name.isdecimal():
            digits = path.name.lstrip("0") or "0"
            stems.append([digits.zfill(width) for width in widths if width >= len(digits)])
        for spelled in stems:
            names = [stem + ending for stem in spelled for ending in endings]
            files = [file for file in names if os.path.isfile(path.parent / file)]
            if len(files) > 1:
                raise ImageError(f"several image files could be meant: {', '.join(files)}")
            if files:
                return image_id, path.parent / files[0]
        return image_id, path

    def _relative(self, name: str) -> str | None:
        name = name.replace("\\", "/")
        windows = PureWindowsPath(name)
        if "\0" in name or (windows.drive and windows.is_absolute()):
            return None
        absolute = os.path.normpath(os.path.join(self._absolute, name))
        if absolute.startswith(self._absolute):
            return absolute.removeprefix(self._absolute)
        if os.path.isabs(name):
            parent, file = os.path.split(absolute)
            real = os.path.join(self._realpath(parent), file)
            if real.startswith(self._real):
                return real.removeprefix(self._real)
        return None


def _spellings(folder: Path) -> tuple[list[str], list[int]]:
    """The suffixes of a folder's images as they are spelled there, and the lengths of numbers."""
    endings, widths = set(), set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                stem, ending = os.path.splitext(entry.name)
                if ending.lower() in SUFFIXES:
                    endings.add(ending)
                    if stem.isascii() and stem.isdecimal():
                        widths.add(len(stem))
    except OSError:
        # A folder that is not there has no images: each is reported by its path.
        return [], []
    return sorted(endings), sorted(widths)
