"""The images of a table: files that it names, or files that are stored in it."""

from itertools import chain, count
from pathlib import Path
from typing import Any

from raymed.data import cells
from raymed.data.sources.image_folder import ImageFolder
from raymed.data.sources.table_parquet import StoredImage


class TableImages:
    """Finds the image that a cell holds or names, and its id.

    Args:
        folder: Folder that paths are relative to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = ImageFolder(folder)
        self._stored_ids: set[str] = set()

    def locate(self, cell: Any, number: int) -> tuple[str, Path | bytes]:
        """Return the id of an image, and its file or the content of its file.

        The id of an image stored in the table is the path stored with it, or else ``row-N``, with
        a suffix where that id has been used: many tables store the same path in every row.

        Args:
            cell: One image of a row.
            number: The number of the row.

        Raises:
            ImageError: As `ImageFolder.locate`.
        """
        if not isinstance(cell, StoredImage):
            return self._folder.locate(cells.identifier(cell))
        assert cell.content is not None, "the table was read without its images"
        name = cell.path or f"row-{number}"
        suffixes = chain(("", f"#{number}"), (f"#{number}.{repeated}" for repeated in count(2)))
        ids = (name + suffix for suffix in suffixes)
        image_id = next(each for each in ids if each not in self._stored_ids)
        self._stored_ids.add(image_id)
        return image_id, cell.content
