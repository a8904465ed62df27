"""The images folder of a table: finding the file that a name in the table refers to."""

import os
from functools import lru_cache
from pathlib import Path, PureWindowsPath

from raymed.data.limits import ImageError
from raymed.image_files import ENDINGS

_CACHED_FOLDERS = 4096


class ImageFolder:
    """Finds images by name. Memory use does not grow with the number of files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._absolute = os.path.join(os.path.abspath(folder), "")
        self._real = os.path.join(os.path.realpath(folder), "")
        self._realpath = lru_cache(_CACHED_FOLDERS)(os.path.realpath)
        self._spellings = lru_cache(_CACHED_FOLDERS)(_spellings)

    def locate(self, name: str) -> tuple[str, Path]:
        """Return the id of an image and its file, which may not exist.

        Args:
            name: A path relative to the folder, or an absolute path below it, even if the folder
                is reached through symbolic links. The id is the relative path in either case. If
                there is no such file, the extension may be missing, and in a number the leading
                zeros (12 is ``0012.png``), provided that only one file matches.

        Raises:
            ImageError: The path is outside the folder, or several files match.
        """
        image_id = self._relative(name)
        if image_id is None:
            raise ImageError(
                f"image path is outside the images folder: {name} is not below {self.folder}"
            )
        path = self.folder / image_id
        if path.suffix.lower() in ENDINGS or os.path.isfile(path):
            return image_id, path
        endings, widths = self._spellings(path.parent)
        spellings = [[path.name]]
        if path.name.isascii() and path.name.isdecimal():
            digits = path.name.lstrip("0") or "0"
            spellings.append([digits.zfill(width) for width in widths if width >= len(digits)])
        for stems in spellings:
            names = [stem + ending for stem in stems for ending in endings]
            files = [file for file in names if os.path.isfile(path.parent / file)]
            if len(files) > 1:
                raise ImageError(f"several image files match: {', '.join(files)}")
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
    """Return the image extensions used in a folder, in their case, and the lengths of numbers."""
    endings, widths = set(), set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                stem, ending = os.path.splitext(entry.name)
                if ending.lower() in ENDINGS:
                    endings.add(ending)
                    if stem.isascii() and stem.isdecimal():
                        widths.add(len(stem))
    except OSError:
        # The images of a missing folder are reported one by one.
        return [], []
    return sorted(endings), sorted(widths)
