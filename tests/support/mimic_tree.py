"""A tree of files in the layout of MIMIC-CXR, with drawn images and invented reports."""

import csv
import gzip
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support import dicom_files

LABELS = ("Atelectasis", "Cardiomegaly", "No Finding", "Pleural Effusion")


@dataclass
class Study:
    """A study: its ids, report, labels and images."""

    subject: int
    study: int
    report: str | None
    """None: there is no file."""
    split: str = "train"
    labels: Sequence[str] | None = ("", "1.0", "", "-1.0")
    """None: the study is not in the label table."""
    images: dict[str, str] = field(default_factory=dict)
    """Image id -> its view position."""
    suffix: str = ".jpg"
    """``""``: there are no image files."""

    @property
    def folder(self) -> str:
        return f"p{self.subject // 1_000_000}/p{self.subject}/s{self.study}"


def write_tree(root: Path, studies: Sequence[Study], reports: Path | None = None) -> None:
    """Write the files and tables of studies below ``root``, and the reports there or elsewhere."""
    for study in studies:
        folder = root / "files" / study.folder
        folder.mkdir(parents=True)
        for number, name in enumerate(study.images):
            pixels = np.full((8, 6), (study.study + 40 * number) % 256, np.uint8)
            if study.suffix == ".jpg":
                Image.fromarray(pixels).save(folder / f"{name}.jpg")
            elif study.suffix == ".dcm":
                pixels[:4] = 0
                dicom_files.saved(folder / f"{name}.dcm", dicom_files.dataset(pixels))
        if study.report is not None:
            text = (reports or root / "files") / f"{study.folder}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text(study.report)
    write_tables(root, studies)


def write_tables(root: Path, studies: Sequence[Study]) -> None:
    """Write the three tables, in the columns of version 2.0.0 that matter, among others."""
    images = [(name, view, study) for study in studies for name, view in study.images.items()]
    write_table(
        root / "mimic-cxr-2.0.0-metadata.csv.gz",
        ["dicom_id", "subject_id", "study_id", "ViewPosition", "Rows", "StudyTime"],
        [[name, s.subject, s.study, view, 8, "080556.875"] for name, view, s in images],
    )
    write_table(
        root / "mimic-cxr-2.0.0-split.csv.gz",
        ["dicom_id", "study_id", "subject_id", "split"],
        [[name, s.study, s.subject, s.split] for name, _, s in reversed(images)],
    )
    write_table(
        root / "mimic-cxr-2.0.0-chexpert.csv.gz",
        ["subject_id", "study_id", *LABELS],
        [[s.subject, s.study, *s.labels] for s in studies if s.labels is not None],
    )


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write one compressed table."""
    with gzip.open(path, "wt", newline="") as file:
        csv.writer(file).writerows([header, *rows])
