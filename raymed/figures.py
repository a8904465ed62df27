"""`raymed figure`: the paper's figures 3 and 4 for studies of a prepared dataset."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from raymed.data.dataset import PreparedDataset, Split
from raymed.data.text import with_full_stops
from raymed.errors import UsageError
from raymed.metrics.normality import describes_normality
from raymed.prediction import ReportGenerator
from raymed.provenance import made_from, refuse_to_overwrite
from raymed.reports.attended import AttendedStudy
from raymed.reports.attention import attention_figure, attention_page
from raymed.reports.comparison import ComparedStudy, comparison_figure, comparison_page
from raymed.storage import AnyPath
from raymed.training.checkpoint import Checkpoint

SHOWN = 4
"""The number of studies in a figure if none are named, as in the paper."""
NORMAL = "normal"
"""The tag of a study without abnormalities, in datasets that have one."""


def make_figure(
    figure: str, runs: Sequence[str], data: str | None, split_name: str, names: str, out: AnyPath
) -> list[AnyPath]:
    """Draw a figure as PNG and as one HTML page.

    The page records what it was made from in a `meta` element.

    Args:
        figure: ``3`` (reports of several systems beside the truth, one PNG) or ``4`` (the
            attention of each sentence, a PNG for each study).
        runs: Folders of runs or checkpoints; figure 4 takes one.
        data: The prepared dataset; None: the one that the first run was trained on.
        split_name: ``train``, ``val`` or ``test``.
        names: Ids of images, separated by commas; empty: the split's first images whose reports
            describe an abnormality.
        out: The folder to write to.

    Returns:
        The files written, the page last.

    Raises:
        UsageError: A run, the dataset or an image does not exist, no report describes an
            abnormality, the runs' images differ in size, ``out`` has such a figure made from
            something else, or a file cannot be written.
    """
    checkpoints = [Checkpoint.open(run) for run in runs]
    path = data or checkpoints[0].config.data.path
    dataset = PreparedDataset.open(path)
    for run, checkpoint in zip(runs, checkpoints, strict=True):
        if checkpoint.image_size != dataset.info.image_size:
            raise UsageError(
                f"{run}: was trained on images of {checkpoint.image_size} pixels, but those of "
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
    origin = _note(checkpoints, path, split_name), json.dumps(record)
    if figure == "3":
        return _figure_3(checkpoints, split, rows, origin, out)
    return _figure_4(checkpoints[0], split, rows, origin, out)


def abnormal_rows(split: Split) -> list[int]:
    """The images whose reports describe an abnormality, by row.

    Some sentence describes no normality, and the image is not tagged `normal`: "bones are intact"
    has no word of normality either.
    """
    return [
        row
        for row, (sentences, tags) in enumerate(zip(split.sentences, split.tags, strict=True))
        if NORMAL not in tags and not all(map(describes_normality, sentences))
    ]


def attended_studies(
    checkpoint: Checkpoint, split: Split, rows: Sequence[int]
) -> list[AttendedStudy]:
    """A checkpoint's reports of some images of a split, with its attention and the truth."""
    pictures = split.pixels(np.array(rows))
    reports = ReportGenerator(checkpoint, checkpoint.config.generation)(pictures)
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
    origin: tuple[str, str],
    out: AnyPath,
) -> list[AnyPath]:
    pictures = split.pixels(np.array(rows))
    written = {}
    for number, checkpoint in enumerate(checkpoints, start=1):
        name = checkpoint.config.model.system
        if name in written:
            name = f"{name} ({number}: {checkpoint.path.parent.parent.name})"
        written[name] = ReportGenerator(checkpoint, checkpoint.config.generation)(pictures)
    studies = [
        ComparedStudy(
            split.image_ids[row],
            picture,
            split.sentences[row],
            {name: reports[index].report.sentences for name, reports in written.items()},
        )
        for index, (row, picture) in enumerate(zip(rows, pictures, strict=True))
    ]
    files = [out / "figure-3.png", out / "figure-3.html"]
    comparison_figure(files[0], studies, origin[0])
    comparison_page(files[1], studies, *origin)
    return files


def _figure_4(
    checkpoint: Checkpoint, split: Split, rows: list[int], origin: tuple[str, str], out: AnyPath
) -> list[AnyPath]:
    studies = attended_studies(checkpoint, split, rows)
    # An id may be a path, and several folders may have files of the same name.
    names = ["-".join(Path(study.name).with_suffix("").parts) for study in studies]
    files = [out / f"figure-4-{name}.png" for name in names]
    for file, study in zip(files, studies, strict=True):
        truth = with_full_stops(study.truth or ())
        attention_figure(file, study.image, study.sentences, study.tags, study.name, truth)
    page = out / "figure-4.html"
    attention_page(page, studies, *origin)
    return [*files, page]


def _note(checkpoints: Sequence[Checkpoint], path: str, split_name: str) -> str:
    listed = ", ".join(
        f"{one.config.model.system}: {one.path.parent.parent.name}, epoch {one.epoch}"
        for one in checkpoints
    )
    return f"{listed}; {split_name} split of {path}"
