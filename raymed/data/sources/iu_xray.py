"""Source: IU X-Ray (the Indiana University chest X-ray collection of Open-i)."""

import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from raymed.data import cells
from raymed.data.examples import Example, Rejected
from raymed.data.sources.table_files import csv_columns, csv_rows
from raymed.errors import UsageError

ARCHIVE = "NLMCXR_reports.tgz"
XML_FOLDER = "ecgen-radiology"
REPORTS_CSV = "indiana_reports.csv"
PROJECTIONS_CSV = "indiana_projections.csv"
NORMAL = "normal"
"""The tag of an image whose report has none."""

_IMAGE_ID = re.compile(r"(?:CXR)?(\d+)(?:_\1)?_(IM-\d+(?:-\d+)*)")
_IMAGE_FILE = re.compile(_IMAGE_ID.pattern + r"(?:(?:\.dcm)?\.(?:png|jpe?g)|\.dcm)", re.IGNORECASE)
_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm")
"""The kind of file that is taken where an image lies there in several, first choice first."""
_MAX_XML_BYTES = 10_000_000


@dataclass(frozen=True)
class _Report:
    """One study's report and the ids of its images, in one spelling."""

    study: str
    text: str
    tags: tuple[str, ...]
    image_ids: tuple[str, ...]


def image_id(spelling: str) -> str | None:
    """Return the id ``CXR1_IM-0001-3001`` for any of an image's spellings, None for another name.

    The spellings are ``CXR1_1_IM-0001-3001`` (the official archives), ``CXR1_IM-0001-3001`` and
    ``1_IM-0001-3001`` (the Kaggle copy).
    """
    match = _IMAGE_ID.fullmatch(spelling)
    return f"CXR{match[1]}_{match[2]}" if match else None


def read(
    folder: Path, images: Path | None = None, *, need_views: bool = False
) -> Iterator[Example | Rejected]:
    """Yield every pair of an image and its report, in the order of the studies' numbers.

    An image whose file is missing is yielded too, so that the statistics of the text are whole.

    The target text is the impression, then the findings. From the official archive, tags are
    those of the Medical Text Indexer (``MeSH/automatic``), as in the paper. The Kaggle copy does
    not have these: there, tags are its ``Problems``, the headings that people gave the study, so
    tags and their statistics differ from the paper's. A report without tags gets ``normal``.

    Args:
        folder: holds ``NLMCXR_reports.tgz`` or ``ecgen-radiology/*.xml``; or the Kaggle copy's
            ``indiana_reports.csv`` and ``indiana_projections.csv``. Where both lie, the official
            archive is taken. Views come from ``indiana_projections.csv``, if it is there.
        images: folder with the images, anywhere below it; by default ``folder``.
        need_views: whether the images are to be chosen by their view.

    Raises:
        UsageError: there are no reports, or no views where they are needed, or (after all
            pairs) no image at all.
    """
    folder = Path(folder)
    images = folder if images is None else Path(images)
    for needed in (folder, images):
        if not needed.is_dir():
            raise UsageError(f"{needed}: the folder does not exist")
    if need_views and not (folder / PROJECTIONS_CSV).is_file():
        raise UsageError(
            f"{folder / PROJECTIONS_CSV}: missing; only this file of the Kaggle copy says which "
            "images are frontal and which lateral. Put it there, or prepare views=all"
        )
    return _pairs(folder, images)


def _pairs(folder: Path, images: Path) -> Iterator[Example | Rejected]:
    views = _views(folder / PROJECTIONS_CSV)
    files = _image_files(images)
    reports = list(_reports(folder, views))
    reports.sort(key=lambda report: (len(report.study), report.study))
    used = 0
    for report in reports:
        if isinstance(report, Rejected):
            yield report
            continue
        if not report.image_ids:
            yield Rejected("", report.study, "report has no image")
        for name in report.image_ids:
            used += name in files
            yield Example(
                image_id=name,
                study=report.study,
                # A report's text is not to be trusted with a path.
                image=files.get(name, images / f"{PurePosixPath(name).name}.png"),
                report=report.text,
                tags=report.tags or (NORMAL,),
                view=views.get(name),
            )
    if not used:
        raise UsageError(
            f"{images}: none of the images is there or below. Unpack NLMCXR_png.tgz or "
            "NLMCXR_dcm.tgz there; names must be like CXR1_1_IM-0001-3001.png (official), "
            "CXR1_IM-0001-3001.png or 1_IM-0001-3001.dcm.png (Kaggle), or the same with .jpg, "
            ".jpeg or .dcm"
        )


def _image_files(folder: Path) -> dict[str, Path]:
    """Return image id -> file, for all images in a folder and below; one for each id."""

    def rank(path: Path) -> tuple[int, Path]:
        return _SUFFIXES.index(path.suffix.lower()), path

    found: dict[str, Path] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            match = _IMAGE_FILE.fullmatch(name)
            if match:
                path = Path(parent, name)
                key = f"CXR{match[1]}_{match[2].upper()}"
                found[key] = min(found.get(key, path), path, key=rank)
    return found


def _views(path: Path) -> dict[str, str]:
    """Return image id -> ``frontal`` or ``lateral``, in the file's order; {} without the file."""
    if not path.is_file():
        return {}
    views = {}
    for row in _rows(path, "filename", "projection"):
        name = image_id(row["filename"].removesuffix(".png").removesuffix(".dcm"))
        if name is None:
            raise UsageError(
                f"{path}: {row['filename']!r} is no image name; one is like 1_IM-0001-3001.dcm.png"
            )
        views[name] = row["projection"].lower()
    return views


def _rows(path: Path, *columns: str) -> list[dict[str, str]]:
    there = csv_columns(path)
    for column in columns:
        if column not in there:
            raise UsageError(f"{path}: no column {column!r}; the columns are {', '.join(there)}")
    return [{column: cells.identifier(row[column]) for column in columns} for row in csv_rows(path)]


def _reports(folder: Path, views: dict[str, str]) -> Iterator[_Report | Rejected]:
    if (folder / XML_FOLDER).is_dir():
        for path in sorted((folder / XML_FOLDER).glob("*.xml")):
            size = path.stat().st_size
            yield _too_large(path.name, size) or _parse(path.name, path.read_bytes())
    elif (folder / ARCHIVE).is_file():
        yield from _archived(folder / ARCHIVE)
    elif (folder / REPORTS_CSV).is_file():
        yield from _kaggle(folder, views)
    else:
        raise UsageError(
            f"{folder}: no reports there: it must hold {ARCHIVE}, {XML_FOLDER}/ (unpacked), or "
            f"the Kaggle copy's {REPORTS_CSV} and {PROJECTIONS_CSV}"
        )


def _archived(path: Path) -> Iterator[_Report | Rejected]:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                for target in (member.name, member.linkname):
                    if target.startswith("/") or ".." in PurePosixPath(target).parts:
                        raise UsageError(
                            f"{path}: member {member.name!r} points outside the archive; this is "
                            "not the official file, so nothing of it is read"
                        )
                name = PurePosixPath(member.name).name
                if not member.isfile() or not name.endswith(".xml"):
                    continue
                file = archive.extractfile(member)
                assert file is not None
                yield _too_large(name, member.size) or _parse(name, file.read())
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise UsageError(f"{path}: damaged archive, download it again ({error})") from error


def _too_large(name: str, size: int) -> Rejected | None:
    if size <= _MAX_XML_BYTES:
        return None
    return Rejected("", name, f"report file is too large: {size:,} bytes")


def _parse(name: str, content: bytes) -> _Report | Rejected:
    """Read one report's XML; ``name`` is its file name, ``1.xml``."""
    study = f"CXR{name.removesuffix('.xml')}"
    try:
        root = fromstring(content)
    except (ParseError, DefusedXmlException, ValueError) as error:
        return Rejected("", study, f"report file is no valid XML: {name}: {error}")
    sections = {
        section.get("Label"): cells.text("".join(section.itertext()))
        for section in root.iter("AbstractText")
    }
    image_ids = []
    for image in root.iter("parentImage"):
        spelling = image.get("id", "")
        image_ids.append(image_id(spelling) or spelling)
    return _Report(
        study=study,
        text=_target(sections.get("IMPRESSION", ""), sections.get("FINDINGS", "")),
        tags=tuple(
            name for tag in root.iterfind(".//MeSH/automatic") if (name := cells.text(tag.text))
        ),
        image_ids=tuple(image_ids),
    )


def _kaggle(folder: Path, views: dict[str, str]) -> Iterator[_Report | Rejected]:
    if not views:
        raise UsageError(f"{folder / PROJECTIONS_CSV}: missing; it says which images a report has")
    images: dict[str, list[str]] = {}
    for name in views:
        images.setdefault(name.partition("_")[0], []).append(name)
    for row in _rows(folder / REPORTS_CSV, "uid", "Problems", "findings", "impression"):
        study = f"CXR{row['uid']}"
        try:
            tags = tuple(cells.values(row["Problems"]))
        except ValueError as error:
            yield Rejected("", study, f"tags cannot be read: {error}")
            continue
        yield _Report(
            study=study,
            text=_target(row["impression"], row["findings"]),
            tags=tags,
            image_ids=tuple(images.get(study, ())),
        )


def _target(impression: str, findings: str) -> str:
    return f"{impression} {findings}".strip()
