"""Source: the annotation file in which R2Gen and later work distribute their datasets."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from raymed.data.examples import Example, Rejected
from raymed.data.r2gen_text import IU_XRAY, MIMIC_CXR, R2GenRules
from raymed.data.sources.source import Source
from raymed.data.sources.table import examples
from raymed.data.sources.table_files import TableRow, read_text
from raymed.data.split import split_named, unknown_split
from raymed.errors import UsageError

IMAGES_FOLDER = "images"
_IU_XRAY_ID = re.compile(r"CXR\d+_IM-\d+.*")
_FIELDS = {field: [field] for field in ("image", "report", "study", "split")}


def read(
    path: Path, images_folder: Path | None = None, *, splits: bool = True
) -> Iterator[Example | Rejected]:
    """Yield every image with the report of its record, in file order.

    The file is ``{"train": [...], "val": [...], "test": [...]}``, lists of records with an ``id``,
    a ``report`` and an ``image_path``, which is a list of paths. The study is the ``study_id`` of
    a record, as in MIMIC-CXR, or else its ``id``. The split is its ``split``, or else the list
    that contains it. Records have no tags; the frequent words of the reports are used, as for a
    table without tags. The whole file is read into memory.

    Args:
        path: The file, ``annotation.json``.
        images_folder: Folder that image paths are relative to; by default ``images`` beside the
            file if it exists, else the folder of the file.
        splits: Whether the splits will be used, and so must have names that are known.

    Raises:
        UsageError: It is not such a file, a split has no known name, or the images folder does not
            exist.
    """
    path = Path(path)
    if images_folder is None:
        beside = path.parent / IMAGES_FOLDER
        images_folder = beside if beside.is_dir() else path.parent
    if not images_folder.is_dir():
        raise UsageError(f"{images_folder}: the images folder does not exist")
    rows: list[TableRow] = []
    rejected: list[Rejected] = []
    for list_name, records in _parse(path).items():
        for number, record in enumerate(records, start=1):
            where = f"{path}: record {number} of {list_name!r}"
            study, paths = _study(record, where), _paths(record, where)
            if not paths:
                rejected.append(Rejected("", study, "record has no image"))
            split = _split(record, list_name, path, where) if splits else ""
            report, name = record.get("report"), f"{list_name} {number}"
            rows += [
                {"image": image, "report": report, "study": study, "record": name, "split": split}
                for image in paths
            ]
    return chain(rejected, _as_written(rows, images_folder))


def rules_of(path: Path) -> R2GenRules:
    """Return R2Gen's rules for the reports of a file, by the first record.

    Records of MIMIC-CXR have a ``subject_id``; those of IU X-Ray have an id such as
    ``CXR2384_IM-0942``.

    Raises:
        UsageError: It is neither, or not an annotation file.
    """
    first: Any = next(chain.from_iterable(_parse(path).values()), {})
    if isinstance(first, dict) and first.get("subject_id"):
        return MIMIC_CXR
    if isinstance(first, dict) and _IU_XRAY_ID.fullmatch(str(first.get("id"))):
        return IU_XRAY
    raise UsageError(
        f"{path}: text=r2gen is for the reports of IU X-Ray (records with an `id` such as "
        "CXR2384_IM-0942) and MIMIC-CXR (records with a `subject_id`), but this file has neither; "
        "use text=paper"
    )


def _as_written(rows: list[TableRow], images_folder: Path) -> Iterator[Example | Rejected]:
    """Yield rows as examples whose reports keep the spaces and lines that R2Gen's rules read."""
    for row, example in zip(rows, examples(rows, images_folder, _FIELDS), strict=True):
        if isinstance(example, Example) and example.report:
            yield replace(example, report=str(row["report"]), record=row["record"])
        else:
            yield example


def _parse(path: Path) -> dict[str, list[dict[str, Any]]]:
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
            f"{path}: not an R2Gen annotation file: it must be a JSON object with the lists "
            "of records train, val and test"
        )
    return content


def _study(record: Any, where: str) -> str:
    study = None
    if isinstance(record, dict):
        study = record.get("study_id") or record.get("id")
    if not isinstance(study, str | int):
        raise UsageError(f"{where}: must be an object with an `id`, a `report` and an `image_path`")
    return str(study)


def _split(record: dict[str, Any], list_name: str, path: Path, where: str) -> str:
    named = record.get("split")
    if named and split_named(str(named)) is None:
        raise unknown_split(str(named), where)
    if not named and split_named(list_name) is None:
        raise unknown_split(list_name, f"{path}: key of a list, whose records name no `split`")
    return str(named or list_name)


def _paths(record: dict[str, Any], where: str) -> list[str]:
    paths = record.get("image_path") or []
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise UsageError(f"{where}: image_path must be a list of paths, not {paths!r}")
    return paths


SOURCE = Source(
    name="r2gen",
    summary="R2Gen's annotation.json; its lists train, val and test are the split",
    read=lambda path, settings, _: read(
        path, settings.images_folder, splits=settings.split in ("auto", "given")
    ),
    path="FILE",
    accepts=("images", "text"),
    r2gen_rules=rules_of,
)
