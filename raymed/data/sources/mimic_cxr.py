"""Source: MIMIC-CXR and MIMIC-CXR-JPG in the layout of PhysioNet."""

import re
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from raymed.data import cells
from raymed.data.examples import Example, Rejected
from raymed.data.r2gen_text import MIMIC_CXR
from raymed.data.report_sections import target_text
from raymed.data.sources.labels import LabelSettings
from raymed.data.sources.mimic_sections import sections_of
from raymed.data.sources.mimic_tables import Tables, read_tables
from raymed.data.sources.source import Source
from raymed.errors import UsageError
from raymed.setting_types import ReportSections

REPORTS = "mimic-cxr-reports"
"""The archive of the reports without its ending, and the folder it is unpacked to."""
_SUFFIXES = (".jpg", ".dcm")
_MEMBER = re.compile(r"(.*/)?p\d+/p\d+/s\d+\.txt")

ReadReport = Callable[[str], bytes]
"""Returns a report, given its path such as ``p10/p10000032/s50414267.txt``; raises KeyError or
FileNotFoundError if there is none."""


class MimicSettings(LabelSettings):
    """Settings of ``raymed prepare mimic-cxr``."""

    reports: str | None = None
    """mimic-cxr-reports.zip, or the folder it was unpacked to; by default, either of these beside
    the tables, or else the .txt files among the images."""


def read(
    root: Path,
    images_folder: Path | None = None,
    reports: Path | None = None,
    *,
    positive: Collection[int] = (1,),
    need_split: bool = False,
    sections: ReportSections = "both",
    print_line: Callable[[str], None] = lambda _: None,
) -> Iterator[Example | Rejected]:
    """Yield every image of the metadata table, in the order of patients and studies.

    Image ids are the ``dicom_id``, and studies the ``study_id``. The report of a study is read
    once, when its first image is reached. Tags are the names of the study's positive labels, which
    may be none; views are the ``ViewPosition``.

    Args:
        root: Holds the tables (see `raymed.data.sources.mimic_tables.read_tables`).
        images_folder: Holds ``files/p10/p10000032/s50414267/*.jpg`` or ``*.dcm``; by default
            ``root``.
        reports: The archive or the folder of the reports; see `MimicSettings.reports`.
        positive: The values of a label that make a tag.
        need_split: Whether there must be a split table.
        sections: The target text: the findings, the impression, or the impression followed by the
            findings, or else the text of a report that has neither heading. A report without the
            one section that is wanted is rejected.
        print_line: Called with lines that describe what was found.

    Raises:
        UsageError: A folder or table is missing or damaged; or (raised after the last example)
            there was no image or no report.
    """
    images_folder = root if images_folder is None else images_folder
    for needed in (root, images_folder):
        if not needed.is_dir():
            raise UsageError(f"{needed}: the folder does not exist")
    reports = _reports_path(root, images_folder, reports)
    tables = read_tables(root)
    if need_split and not tables.has_split:
        raise UsageError(f"{root}: no mimic-cxr-2.0.0-split.csv.gz, which split=given needs")
    print_line(
        f"{len(tables.images):,} images and {len(tables.labels.values):,} labelled studies in the "
        f"tables; reports from {reports}"
    )
    if not tables.has_split:
        print_line(
            "No split table: studies would be split at random, and a patient's studies may then "
            "be in training and in test"
        )
    return _examples(tables, _files(images_folder), reports, positive, sections)


def _examples(
    tables: Tables,
    images: Path,
    reports: Path,
    positive: Collection[int],
    sections: ReportSections,
) -> Iterator[Example | Rejected]:
    found_images = found_reports = 0
    with _report_reader(reports) as read_report:
        for (subject, study), rows in groupby(tables.rows(), lambda row: (row.subject, row.study)):
            folder = _folder(subject, study)
            report = _report(read_report, f"{folder}.txt", sections)
            found_reports += not isinstance(report, Rejected)
            for row in rows:
                image = _image(images / folder, row.image_id)
                found_images += image is not None
                if isinstance(report, Rejected):
                    yield replace(report, image_id=row.image_id, study=str(study))
                    continue
                yield Example(
                    image_id=row.image_id,
                    study=str(study),
                    image=image or images / folder / f"{Path(row.image_id).name}{_SUFFIXES[0]}",
                    report=report,
                    tags=() if row.labels is None else tables.labels.tags(row.labels, positive),
                    split=row.split,
                    view=row.view,
                    # As in R2Gen's file, by which the words of a report count once per image.
                    record=row.image_id,
                )
    for found, kind, where in (
        (found_images, "images", images),
        (found_reports, "reports", reports),
    ):
        if not found:
            raise UsageError(
                f"{where}: none of the {kind} in the tables is there; one would be "
                f"{_folder(subject, study)}"
            )


def _folder(subject: int, study: int) -> str:
    """Return the folder of a study's images, such as ``p10/p10000032/s50414267``."""
    return f"p{str(subject)[:2]}/p{subject}/s{study}"


def _image(folder: Path, image_id: str) -> Path | None:
    """Return the file of an image, as JPEG or DICOM; None if there is neither."""
    # An id with a path in it must not lead out of the folder.
    paths = (folder / f"{Path(image_id).name}{suffix}" for suffix in _SUFFIXES)
    return next(filter(Path.is_file, paths), None)


def _report(read_report: ReadReport, name: str, sections: ReportSections) -> str | Rejected:
    """Return the text to learn from, or why there is none."""
    try:
        text = read_report(name).decode("utf-8-sig")
    except (FileNotFoundError, KeyError):
        return Rejected("", "", f"report file not found: {name}")
    except OSError as error:
        return Rejected("", "", f"report file cannot be read: {name}: {error.strerror}")
    except UnicodeDecodeError:
        return Rejected("", "", f"report file is not UTF-8 text: {name}")
    found = sections_of("\n".join(text.splitlines()))
    if sections == "both":
        target = cells.paragraphs([found.impression, found.findings]) or found.other
        return target or Rejected("", "", f"report has neither findings nor an impression: {name}")
    target = target_text(found.findings, found.impression, sections)
    return target or Rejected("", "", f"report has no {sections} section")


def _files(folder: Path) -> Path:
    return folder / "files" if (folder / "files").is_dir() else folder


def _reports_path(root: Path, images: Path, given: Path | None) -> Path:
    """Return the archive of the reports, or the folder that holds ``p10``, ``p11`` and so on."""
    if given is None:
        candidates = [root / f"{REPORTS}.zip", root / REPORTS, images]
        given = next(path for path in candidates if path.exists())
    if not given.exists():
        raise UsageError(f"reports={given}: there is no such file or folder")
    return _files(given) if given.is_dir() else given


@contextmanager
def _report_reader(path: Path) -> Iterator[ReadReport]:
    """Open the folder or the archive of the reports; UsageError if the archive is damaged."""
    if path.is_dir():
        yield lambda name: (path / name).read_bytes()
        return
    try:
        with zipfile.ZipFile(path) as archive:
            matches = map(_MEMBER.fullmatch, archive.namelist())
            prefix = next((match[1] or "" for match in matches if match), "")
            yield lambda name: archive.read(prefix + name)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"{path}: damaged archive ({error}); download it again") from error


SOURCE = Source(
    name="mimic-cxr",
    summary="MIMIC-CXR-JPG or MIMIC-CXR as downloaded, with the tables of MIMIC-CXR-JPG",
    read=lambda folder, settings, print_line: read(
        folder,
        settings.images_folder,
        Path(settings.reports) if settings.reports else None,
        positive=settings.positive,
        need_split=settings.split == "given",
        sections=settings.sections,
        print_line=print_line,
    ),
    path="FOLDER",
    settings=MimicSettings,
    accepts=("views", "images", "split_file", "sections", "text"),
    r2gen_rules=lambda _: MIMIC_CXR,
)
