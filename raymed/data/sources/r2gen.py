"""Source: the annotation file that R2Gen and later work give their datasets in."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from raymed.data.examples import Example, Rejected
from raymed.data.sources.table import examples
from raymed.data.sources.table_files import Row, read_text
from raymed.errors import UsageError

IMAGES_FOLDER = "images"
_FIELDS = {field: [field] for field in ("image", "report", "study", "split")}


def read(path: Path, images: Path | None = None) -> Iterator[Example | Rejected]:
    """Yield every pair of an image and the report of its record, in the order of the file.

    The file is ``{"train": [...], "val": [...], "test": [...]}``, lists of records with ``id``,
    ``report`` and ``image_path``, a list of paths. A study is a record's ``study_id`` if it has
    one, as those of MIMIC-CXR, or its ``id``. Its split is what its ``split`` says, or else the
    list that it stands in. Records have no tags: these are the reports' frequent words, as in a
    table. The file is read whole, into memory.

    Args:
        path: the file, ``annotation.json``.
        images: folder that image paths are relative to; by default ``images`` beside the file, or
            where the file lies.

    Raises:
        UsageError: it is not such a file, or there is no folder of images.
    """
    path = Path(path)
    if images is None:
        images = path.parent / IMAGES_FOLDER
        images = images if images.is_dir() else path.parent
    if not images.is_dir():
        raise UsageError(f"{images}: the images folder does not exist")
    rows: list[Row] = []
    rejected: list[Rejected] = []
    for side, records in _parsed(path).items():
        for number, record in enumerate(records, start=1):
            where = f"{path}: record {number} of {side!r}"
            study, paths = _study(record, where), _paths(record, where)
            if not paths:
                rejected.append(Rejected("", study, "record names no image"))
            split = record.get("split") or side
            rows += [
                {"image": one, "report": record.get("report"), "study": study, "split": split}
                for one in paths
            ]
    return chain(rejected, examples(rows, images, _FIELDS))


def _parsed(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise UsageError(f"{path}: not JSON: {error}") from error
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(records, list) for records in content.values())
    ):
        raise UsageError(
            f"{path}: not R2Gen's annotation file: it must be a JSON object with the lists train, "
            "val and test of records"
        )
    return content


def _study(record: Any, where: str) -> str:
    named = None
    if isinstance(record, dict):
        named = record.get("study_id") or record.get("id")
    if not isinstance(named, str | int):
        raise UsageError(f"{where}: must be an object with an `id`, a `report` and an `image_path`")
    return str(named)


def _paths(record: dict[str, Any], where: str) -> list[str]:
    paths = record.get("image_path") or []
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not all(isinstance(one, str) for one in paths):
        raise UsageError(f"{where}: image_path must be a list of paths, not {paths!r}")
    return paths
