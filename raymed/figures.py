"""`raymed figure`: the paper's figures 3 and 4 for studies of a prepared dataset."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from raymed.data.dataset import PreparedDataset, Split
from raymed.errors import UsageError
from raymed.metrics.normality import describes_normality
from raymed.prediction import Reporter
from raymed.provenance import made_from, refuse_to_overwrite
from raymed.reports.attention import AttendedStudy, attention_figure, attention_page
from raymed.reports.comparison import ComparedStudy, comparison_figure, comparison_page
from raymed.storage import AnyPath
from raymed.training.checkpoint import Checkpoint

SHOWN = 4
"""Studies in a figure where none are named, as many as in the paper's."""
NORMAL = "normal"
"""The tag of a study without an abnormality, in datasets that have it."""


def make_figure(
    figure: str, runs: Sequence[str], data: str | None, split_name: str, names: str, out: AnyPath
) -> list[AnyPath]:
    """Draw a figure as PNG and as one HTML page.

    Args:
        figure: ``3`` (reports of several systems beside the truth, one PNG) or ``4`` (the
            attention of each sentence, a PNG for each study).
        runs: folders of runs or checkpoints; figure 4 takes one.
        data: the prepared dataset; None: the one that the first run was trained on.
        split_name: ``train``, ``val`` or ``test``.
        names: ids of images, separated by commas; empty: the first ones of the split whose report
            describes an abnormality.
        out: folder to write to.

    What they were made from stands in the page, as a `meta` element.

    Returns:
        The files written, the page last.

    Raises:
        UsageError: a run, the dataset or an image is not there, no report describes an
            abnormality, the runs' images have different sizes, ``out`` holds such a figure of
            something else, or a file cannot be written.
    """
    checkpoints = [Checkpoint.open(run) for run in runs]
    path = data or checkpoints[0].config.data.path
    dataset = PreparedDataset.open(path)
    for run, checkpoint in zip(runs, checkpoints, strict=True):
        if checkpoint.image_size != dataset.info.image_size:
            raise UsageError(
                f"{run}: was trained on images of {checkpoint.image_size} pixels, and those of "
                f"{path} have {dataset.info.image_size}"
            )
    split = dataset.split(split_name)
    rows = _chosen(split, split_name, names)
    if figure == "4" and len(runs) != 1:
        raise UsageError(f"figure 4: takes one run, not {len(runs)}")
    record = {
        "runs": {
            str(number): made_from(checkpoint, checkpoint.config, dataset, split_name)
            for number, checkpoint in enumerate(checkpoints, start=1)
        },
        "images": [split.image_ids[row] for row in rows],
    }
    page = f"figure-{figure}.html"
    found = sorted(file.name for file in out.glob(f"figure-{figure}*"))
    refuse_to_overwrite(out, (page,) if page in found else found, record)
    noted = _note(checkpoints, path, split_name), json.dumps(record)
    if figure == "3":
        return _figure_3(checkpoints, split, rows, noted, out)
    return _figure_4(checkpoints[0], split, rows, noted, out)


def abnormal_rows(split: Split) -> list[int]:
    """The images whose report describes an abnormality: not every sentence is one of normality,
    and `normal` is not their tag (that bones are intact says no word of normality).
    """
    return [
        row
        for row, (sentences, tags) in enumerate(zip(split.sentences, split.tags, strict=True))
        if NORMAL not in tags and not all(map(describes_normality, sentences))
    ]


def attended_studies(
    checkpoint: Checkpoint, split: Split, rows: Sequence[int]
) -> list[AttendedStudy]:
    """What a checkpoint writes of some images of a split, with its attention, beside the truth."""
    pictures = split.pixels(np.array(rows))
    reports = Reporter(checkpoint, checkpoint.config.generation)(pictures)
    return [
        AttendedStudy(
            split.image_ids[row], picture, one.sentences, one.report.tags, split.sentences[row]
        )
        for row, picture, one in zip(rows, pictures, reports, strict=True)
    ]


def _chosen(split: Split, split_name: str, names: str) -> list[int]:
    if not names:
        abnormal = abnormal_rows(split)
        if not abnormal:
            raise UsageError(
                f"images: no report of split {split_name} describes an abnormality; name the "
                f"images to show, such as images={split.image_ids[0]}"
            )
        return abnormal[:SHOWN]
    rows = {name: row for row, name in enumerate(split.image_ids)}
    wanted = names.split(",")
    for name in wanted:
        if name not in rows:
            raise UsageError(
                f"images: no image {name!r} in split {split_name}; its first is "
                f"{split.image_ids[0]!r}"
            )
    return [rows[name] for name in wanted]


def _figure_3(
    checkpoints: Sequence[Checkpoint],
    split: Split,
    rows: list[int],
    noted: tuple[str, str],
    out: AnyPath,
) -> list[AnyPath]:
    pictures = split.pixels(np.array(rows))
    written = {}
    for number, checkpoint in enumerate(checkpoints, start=1):
        name = checkpoint.config.model.system
        if name in written:
            name = f"{name} ({number}: {checkpoint.path.parent.parent.name})"
        written[name] = Reporter(checkpoint, checkpoint.config.generation)(pictures)
    studies = [
        ComparedStudy(
            split.image_ids[row],
            picture,
            split.sentences[row],
            {name: reports[place].report.sentences for name, reports in written.items()},
        )
        for place, (row, picture) in enumerate(zip(rows, pictures, strict=True))
    ]
    files = [out / "figure-3.png", out / "figure-3.html"]
    comparison_figure(files[0], studies, noted[0])
    comparison_page(files[1], studies, *noted)
    return files


def _figure_4(
    checkpoint: Checkpoint, split: Split, rows: list[int], noted: tuple[str, str], out: AnyPath
) -> list[AnyPath]:
    studies = attended_studies(checkpoint, split, rows)
    # An id may be a path, and files of one name may lie in several folders.
    names = ["-".join(Path(study.name).with_suffix("").parts) for study in studies]
    files = [out / f"figure-4-{name}.png" for name in names]
    for file, study in zip(files, studies, strict=True):
        truth = ". ".join(study.truth or ())
        attention_figure(file, study.image, study.sentences, study.tags, study.name, truth)
    page = out / "figure-4.html"
    attention_page(page, studies, *noted)
    return [*files, page]


def _note(checkpoints: Sequence[Checkpoint], path: str, split_name: str) -> str:
    listed = ", ".join(
        f"{one.config.model.system}: {one.path.parent.parent.name}, epoch {one.epoch}"
        for one in checkpoints
    )
    return f"{listed}; {split_name} split of {path}"
