"""Source: IU X-Ray, the Indiana University chest X-ray collection of Open-i."""

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
from raymed.data.r2gen_text import IU_XRAY
from raymed.data.report_sections import target_text
from raymed.data.sources.source import Source
from raymed.data.sources.table_files import csv_columns, csv_rows
from raymed.errors import UsageError
from raymed.setting_types import ReportSections

ARCHIVE = "NLMCXR_reports.tgz"
XML_FOLDER = "ecgen-radiology"
REPORTS_CSV = "indiana_reports.csv"
PROJECTIONS_CSV = "indiana_projections.csv"
NORMAL = "normal"
"""Tag of an image whose report has no tags."""

_IMAGE_ID = re.compile(r"(?:CXR)?(\d+)(?:_\1)?_(IM-\d+(?:-\d+)*)")
_IMAGE_FILE = re.compile(_IMAGE_ID.pattern + r"(?:(?:\.dcm)?\.(?:png|jpe?g)|\.dcm)", re.IGNORECASE)
_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm")
"""File types in order of preference, for an image that exists in several."""
_MAX_XML_BYTES = 10_000_000


@dataclass(frozen=True)
class _Report:
    """The report of one study and the normalised ids of its images."""

    study: str
    findings: str
    impression: str
    tags: tuple[str, ...]
    image_ids: tuple[str, ...]


def image_id(spelling: str) -> str | None:
    """Normalise the name of an image; None if it is not an image name.

    ``CXR1_1_IM-0001-3001`` (official archives), ``CXR1_IM-0001-3001`` and ``1_IM-0001-3001``
    (Kaggle copy) all become ``CXR1_IM-0001-3001``.
    """
    match = _IMAGE_ID.fullmatch(spelling)
    return f"CXR{match[1]}_{match[2]}" if match else None


def read(
    folder: Path,
    images_folder: Path | None = None,
    *,
    need_views: bool = False,
    sections: ReportSections = "both",
) -> Iterator[Example | Rejected]:
    """Yield every image with its report, in order of study number.

    An image whose file is missing is yielded as well, to keep the text statistics complete.

    In the official archive, tags are
    those of the Medical Text Indexer (``MeSH/automatic``), as in the paper. The Kaggle copy lacks
    them: there, tags are its ``Problems``, the manually assigned headings, so the tags and their
    statistics differ from the paper's. A report without tags gets the tag ``normal``.

    Args:
        folder: Holds ``NLMCXR_reports.tgz`` or ``ecgen-radiology/*.xml``, or the Kaggle copy's
            ``indiana_reports.csv`` and ``indiana_projections.csv``. If both exist, the official
            archive is used. Views are read from ``indiana_projections.csv`` if it exists.
        images_folder: Folder that is searched recursively for images; by default ``folder``.
        need_views: Whether images will be selected by view.
        sections: The target text: the findings, the impression, or the impression followed by the
            findings. A report without the one section that is wanted is rejected.

    Raises:
        UsageError: There are no reports, views are needed but unknown, or (raised after the last
            example) no image exists.
    """
    folder = Path(folder)
    images_folder = folder if images_folder is None else Path(images_folder)
    for needed in (folder, images_folder):
        if not needed.is_dir():
            raise UsageError(f"{needed}: the folder does not exist")
    if need_views and not (folder / PROJECTIONS_CSV).is_file():
        raise UsageError(
            f"{folder / PROJECTIONS_CSV}: missing; only this file of the Kaggle copy tells frontal "
            "from lateral images. Put it there, or use views=all"
        )
    return _examples(folder, images_folder, sections)


def _examples(
    folder: Path, images_folder: Path, sections: ReportSections
) -> Iterator[Example | Rejected]:
    views = _views(folder / PROJECTIONS_CSV)
    files = _image_files(images_folder)
    reports = list(_reports(folder, views))
    reports.sort(key=lambda report: (len(report.study), report.study))
    used = 0
    for report in reports:
        if isinstance(report, Rejected):
            yield report
            continue
        if not report.image_ids:
            yield Rejected("", report.study, "report has no image")
        text = target_text(report.findings, report.impression, sections)
        for name in report.image_ids:
            used += name in files
            if sections != "both" and not text:
                yield Rejected(name, report.study, f"report has no {sections} section")
                continue
            yield Example(
                image_id=name,
                study=report.study,
                # Image names in a report are untrusted input; they must not escape the folder.
                image=files.get(name, images_folder / f"{PurePosixPath(name).name}.png"),
                report=text,
                tags=report.tags or (NORMAL,),
                view=views.get(name),
            )
    if not used:
        raise UsageError(
            f"{images_folder}: no image of the collection was found in it or below. Unpack "
            "NLMCXR_png.tgz or NLMCXR_dcm.tgz there. File names must look like "
            "CXR1_1_IM-0001-3001.png (official), CXR1_IM-0001-3001.png or 1_IM-0001-3001.dcm.png "
            "(Kaggle); .jpg, .jpeg and .dcm are accepted too"
        )


def _image_files(folder: Path) -> dict[str, Path]:
    """Return image id -> file for all images below a folder, one file per id."""

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
    """Return image id -> ``frontal`` or ``lateral`` in file order; empty if there is no file."""
    if not path.is_file():
        return {}
    views = {}
    for row in _rows(path, "filename", "projection"):
        name = image_id(row["filename"].removesuffix(".png").removesuffix(".dcm"))
        if name is None:
            raise UsageError(
                f"{path}: {row['filename']!r} is not an image name like 1_IM-0001-3001.dcm.png"
            )
        views[name] = row["projection"].lower()
    return views


def _rows(path: Path, *columns: str) -> list[dict[str, str]]:
    available = csv_columns(path)
    for column in columns:
        if column not in available:
            raise UsageError(
                f"{path}: no column {column!r}; the columns are {', '.join(available)}"
            )
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
            f"{folder}: no reports found: the folder must contain {ARCHIVE}, {XML_FOLDER}/ "
            f"(unpacked), or the Kaggle copy's {REPORTS_CSV} and {PROJECTIONS_CSV}"
        )


def _archived(path: Path) -> Iterator[_Report | Rejected]:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                for target in (member.name, member.linkname):
                    if target.startswith("/") or ".." in PurePosixPath(target).parts:
                        raise UsageError(
                            f"{path}: member {member.name!r} points outside the archive, so this "
                            "cannot be the official file; refusing to read it"
                        )
                name = PurePosixPath(member.name).name
                if not member.isfile() or not name.endswith(".xml"):
                    continue
                file = archive.extractfile(member)
                assert file is not None
                yield _too_large(name, member.size) or _parse(name, file.read())
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise UsageError(f"{path}: damaged archive ({error}); download it again") from error


def _too_large(name: str, size: int) -> Rejected | None:
    if size <= _MAX_XML_BYTES:
        return None
    return Rejected("", name, f"report file is too large: {size:,} bytes")


def _parse(name: str, content: bytes) -> _Report | Rejected:
    """Parse the XML of one report; ``name`` is its file name, such as ``1.xml``."""
    study = f"CXR{name.removesuffix('.xml')}"
    try:
        root = fromstring(content)
    except (ParseError, DefusedXmlException, ValueError) as error:
        return Rejected("", study, f"report file is not valid XML: {name}: {error}")
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
        findings=sections.get("FINDINGS", ""),
        impression=sections.get("IMPRESSION", ""),
        tags=tuple(
            name for tag in root.iterfind(".//MeSH/automatic") if (name := cells.text(tag.text))
        ),
        image_ids=tuple(image_ids),
    )


def _kaggle(folder: Path, views: dict[str, str]) -> Iterator[_Report | Rejected]:
    if not views:
        raise UsageError(f"{folder / PROJECTIONS_CSV}: missing; it links reports to images")
    images_of: dict[str, list[str]] = {}
    for name in views:
        images_of.setdefault(name.partition("_")[0], []).append(name)
    for row in _rows(folder / REPORTS_CSV, "uid", "Problems", "findings", "impression"):
        study = f"CXR{row['uid']}"
        try:
            tags = tuple(cells.values(row["Problems"]))
        except ValueError as error:
            yield Rejected("", study, f"tags cannot be read: {error}")
            continue
        yield _Report(
            study=study,
            findings=row["findings"],
            impression=row["impression"],
            tags=tags,
            image_ids=tuple(images_of.get(study, ())),
        )


SOURCE = Source(
    name="iu-xray",
    summary="the archives of Open-i as downloaded, or the Kaggle copy",
    read=lambda folder, settings, _: read(
        folder,
        settings.images_folder,
        need_views=settings.views != "all",
        sections=settings.sections,
    ),
    path="FOLDER",
    accepts=("views", "images", "split_file", "sections", "text"),
    r2gen_rules=lambda _: IU_XRAY,
)
