"""`raymed figure`: the paper's figures 3 and 4 for studies of a prepared dataset."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from raymed.data.dataset import PreparedDataset
from raymed.data.studies import Examples, open_examples
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
        names: Ids of images, separated by commas, which stand for their studies if the runs read
            several images of a study; empty: the split's first images, or studies, whose reports
            describe an abnormality.
        out: The folder to write to.

    Returns:
        The files written, the page last.

    Raises:
        UsageError: A run, the dataset or an image does not exist, no report describes an
            abnormality, the runs' images differ in size or in their number per study, ``out`` has
            such a figure made from something else, or a file cannot be written.
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
    split = open_examples(dataset, split_name, _images_per_study(runs, checkpoints))
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


def _images_per_study(runs: Sequence[str], checkpoints: Sequence[Checkpoint]) -> int:
    """How many images the runs read of a study.

    Raises:
        UsageError: They differ.
    """
    numbers = [checkpoint.config.data.images_per_study for checkpoint in checkpoints]
    for run, number in zip(runs, numbers, strict=True):
        if number != numbers[0]:
            raise UsageError(
                f"{run}: was trained with data.images_per_study={number}, but {runs[0]} with "
                f"{numbers[0]}: draw a figure of each"
            )
    return numbers[0]


def abnormal_rows(split: Examples) -> list[int]:
    """The examples whose reports describe an abnormality, by row.

    Some sentence describes no normality, and the image is not tagged `normal`: "bones are intact"
    has no word of normality either.
    """
    return [
        row
        for row, (sentences, tags) in enumerate(zip(split.sentences, split.tags, strict=True))
        if NORMAL not in tags and not all(map(describes_normality, sentences))
    ]


def attended_studies(
    checkpoint: Checkpoint, split: Examples, rows: Sequence[int]
) -> list[AttendedStudy]:
    """A checkpoint's reports of some examples of a split, with its attention and the truth."""
    pictures = split.pictures(np.array(rows))
    reports = ReportGenerator(checkpoint, checkpoint.config.generation)(pictures)
    return [
        AttendedStudy(
            split.image_ids[row], images, one.sentences, one.report.tags, split.sentences[row]
        )
        for row, images, one in zip(rows, pictures, reports, strict=True)
    ]


def _chosen(split: Examples, split_name: str, names: str) -> list[int]:
    if not names:
        abnormal = abnormal_rows(split)
        if not abnormal:
            raise UsageError(
                f"images: no report of split {split_name} describes an abnormality; name the "
                f"images to show, such as images={next(iter(split.numbers()))}"
            )
        return abnormal[:SHOWN]
    rows = split.numbers()
    wanted = names.split(",")
    for name in wanted:
        if name not in rows:
            raise UsageError(
                f"images: no image {name!r} in split {split_name}; its first is "
                f"{next(iter(rows))!r}"
            )
    return [rows[name] for name in wanted]


def _figure_3(
    checkpoints: Sequence[Checkpoint],
    split: Examples,
    rows: list[int],
    origin: tuple[str, str],
    out: AnyPath,
) -> list[AnyPath]:
    pictures = split.pictures(np.array(rows))
    written = {}
    for number, checkpoint in enumerate(checkpoints, start=1):
        name = checkpoint.config.model.system
        if name in written:
            name = f"{name} ({number}: {checkpoint.path.parent.parent.name})"
        written[name] = ReportGenerator(checkpoint, checkpoint.config.generation)(pictures)
    studies = [
        ComparedStudy(
            split.image_ids[row],
            images,
            split.sentences[row],
            {name: reports[index].report.sentences for name, reports in written.items()},
        )
        for index, (row, images) in enumerate(zip(rows, pictures, strict=True))
    ]
    files = [out / "figure-3.png", out / "figure-3.html"]
    comparison_figure(files[0], studies, origin[0])
    comparison_page(files[1], studies, *origin)
    return files


def _figure_4(
    checkpoint: Checkpoint, split: Examples, rows: list[int], origin: tuple[str, str], out: AnyPath
) -> list[AnyPath]:
    studies = attended_studies(checkpoint, split, rows)
    # An id may be a path, and several folders may have files of the same name.
    # Those of a study's images are separated by commas.
    ids = [
        study.name.partition(",")[0] if len(study.images) > 1 else study.name for study in studies
    ]
    names = ["-".join(Path(name).with_suffix("").parts) for name in ids]
    files = [out / f"figure-4-{name}.png" for name in names]
    for file, study in zip(files, studies, strict=True):
        truth = with_full_stops(study.truth or ())
        attention_figure(file, study.images, study.sentences, study.tags, study.name, truth)
    page = out / "figure-4.html"
    attention_page(page, studies, *origin)
    return [*files, page]


def _note(checkpoints: Sequence[Checkpoint], path: str, split_name: str) -> str:
    listed = ", ".join(
        f"{one.config.model.system}: {one.path.parent.parent.name}, epoch {one.epoch}"
        for one in checkpoints
    )
    return f"{listed}; {split_name} split of {path}"
