"""Reports of image files: needs a checkpoint and the images, nothing else."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from torch import Tensor

from raymed.config import Config
from raymed.data.batches import on_device
from raymed.data.dataset import Split
from raymed.data.images import ImageError, read_image
from raymed.data.studies import as_images, examples
from raymed.data.text import with_full_stops
from raymed.errors import UsageError
from raymed.evaluation import RANKED_TAGS
from raymed.generation import Report, add_attention, generate
from raymed.image_files import ImageFiles
from raymed.json_lines import added_lines
from raymed.model.system import Reading
from raymed.notices import NOT_FOR_CLINICAL_USE
from raymed.progress import Progress
from raymed.provenance import KEY, Record, made_from, refuse_to_overwrite
from raymed.reports.attended import AttendedSentence
from raymed.sections import GenerationConfig
from raymed.storage import AnyPath, user_output
from raymed.training.checkpoint import Checkpoint
from raymed.training.worker import local_device

PREDICTIONS_FILE = "predictions.jsonl"
RECORD_FILE = "made_from.json"


@dataclass(frozen=True, repr=False)
class Prediction:
    """The report of one image, or of the images of one study.

    Attributes:
        image: The image's name, or those of the study's images, separated by commas.
        report: The generated report: its ``text``, its ``sentences``, and all ``tags`` with their
            probabilities, most probable first.
        pictures: The images as the model saw them, uint8 [I, size, size].
        sentences: The report's sentences, each with its ``text``, its visual attention ``alpha``
            and the ``tags`` attended to, where the system has these.
    """

    image: str
    report: Report
    pictures: np.ndarray
    sentences: list[AttendedSentence]

    def __str__(self) -> str:
        return self.report.text

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.image!r}: {self.report.text!r})"

    def draw(self, truth: str | None = None) -> Image.Image:
        """The attention figure: the images, each sentence and where the model looked.

        Args:
            truth: The report written by a person, if it is known.

        Returns:
            A picture that notebooks show, and that ``.save("figure.png")`` writes.
        """
        # Ray's workers import this module, and need not load matplotlib at their start.
        from raymed.reports.attention import draw_attention
        from raymed.reports.drawing import as_picture

        return as_picture(
            draw_attention(self.pictures, self.sentences, self.report.tags, self.image, truth)
        )


@dataclass(frozen=True, repr=False)
class DrawnPrediction(Prediction):
    """A prediction whose attention figure was written.

    Attributes:
        figure: The file with the figure.
    """

    figure: AnyPath


def print_prediction(prediction: DrawnPrediction, console: Console) -> None:
    """Print the five most probable tags and the report, one sentence per line."""
    tags = ", ".join(f"{tag} {share:.2f}" for tag, share in prediction.report.tags[:5])
    console.print(prediction.image, style="bold", highlight=False, markup=False, soft_wrap=True)
    for line in (f"tags: {tags}", *prediction.report.sentences, f"attention: {prediction.figure}"):
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"  {NOT_FOR_CLINICAL_USE}", style="dim", highlight=False, soft_wrap=True)


def predict(
    checkpoint: Checkpoint,
    config: Config,
    images: Sequence[str],
    out: AnyPath,
    notify: Callable[[str], None] = lambda _: None,
) -> Iterator[DrawnPrediction]:
    """Write the report of each image or study to ``out``, and draw its attention figure there.

    Each report is appended to ``predictions.jsonl`` as it is generated: ``image`` (as given),
    ``tags`` with their probabilities, ``report``, its ``sentences``, and ``figure``. The checkpoint
    and settings behind them are recorded in ``made_from.json``. Earlier lines of other images by
    the same checkpoint and settings are kept.

    Args:
        checkpoint: The model.
        config: The checkpoint's configuration, with any changes to ``generation``.
        images: Image files, scaled and padded as in training; of a run that reads several images
            of a study, those of each study separated by commas; and folders, as `ImageFiles`
            reads them, each of whose images is a study of its own.
        out: Folder. Figures are ``<image name>-attention.png``, numbered where a name recurs.
        notify: Receives a message with the number of skipped files in the folders, if any.

    Raises:
        UsageError: ``out`` contains predictions by another checkpoint or with other settings, or
            cannot be written; or, once all others are written, some images are missing or cannot
            be read. The message names each.
    """
    record = made_from(checkpoint, config, None, None)
    figures = sorted(file.name for file in out.glob("*-attention.png"))
    marks = (RECORD_FILE,) if (out / RECORD_FILE).exists() else (PREDICTIONS_FILE, *figures[:1])
    refuse_to_overwrite(out, marks, record)
    files = ImageFiles(images, out)
    faults: list[str] = []
    reader = _Reader(checkpoint, faults)
    batches = reader.batches(files, config.training.batch_size)
    reports = _reports(ReportGenerator(checkpoint, config.generation), batches)
    done = 0
    # Nothing is left behind if not even the first report can be generated.
    for first in islice(reports, 1):
        _write_record(out, record)
        with added_lines(out / PREDICTIONS_FILE, ImageFiles(images, out)) as lines:
            draw = _FigureWriter(out, lines.figures)
            for path, study, attended in chain([first], reports):
                prediction = draw(study.name, study.pictures, attended)
                lines.add(_line(path, prediction))
                done += 1
                yield prediction
    if files.passed_over:
        notify(f"skipped {files.passed_over} file(s): not images by name or content")
    faults += [f"{folder}: no image in this folder or its subfolders" for folder in files.empty]
    if faults:
        listed = "".join(f"\n  {fault}" for fault in faults)
        raise UsageError(
            f"{len(faults)} of {done + len(faults)} images could not be used; the reports of the "
            f"other {done} are in {out}{listed}"
        )


def predict_rows(
    checkpoint: Checkpoint, config: Config, split: Split, rows: Sequence[int], out: AnyPath
) -> Iterator[DrawnPrediction]:
    """The reports and figures of a split's ``rows``; the figures include the true reports.

    The rows are those of images, or of studies if the run reads several images of a study.
    """
    report, draw = ReportGenerator(checkpoint, config.generation), _FigureWriter(out, ())
    chosen = examples(split, report.images_per_study)
    pictures = chosen.pictures(np.array(rows))
    for row, images, attended in zip(rows, pictures, report(pictures), strict=True):
        truth = with_full_stops(chosen.sentences[row])
        yield draw(chosen.image_ids[row], images, attended, truth)


class AttendedReport(NamedTuple):
    """A generated report, and its sentences with the attention the system has."""

    report: Report
    sentences: list[AttendedSentence]


class ReportGenerator:
    """Generates the reports of pictures with one checkpoint's model."""

    def __init__(self, checkpoint: Checkpoint, settings: GenerationConfig) -> None:
        self.device = local_device()
        self.model = checkpoint.build_model(self.device)
        self.vocabulary = checkpoint.vocabulary
        self.settings = settings
        self.images_per_study = checkpoint.config.data.images_per_study

    def __call__(self, pictures: Sequence[np.ndarray]) -> list[AttendedReport]:
        """The report of each example, given by the pixels of its I images, uint8 [I, H, W]."""
        images = on_device(as_images(pictures, self.images_per_study), self.device)
        generated = add_attention(self.model, generate(self.model, images, self.settings))
        return [
            AttendedReport(
                report,
                self._attended_sentences(generated.reading, number, len(images), report.sentences),
            )
            for number, (images, report) in enumerate(
                zip(pictures, generated.reports(self.vocabulary), strict=True)
            )
        ]

    def _attended_sentences(
        self, reading: Reading, number: int, images: int, sentences: Sequence[str]
    ) -> list[AttendedSentence]:
        alpha = reading.alpha_of(number)
        beta = None if reading.beta is None else reading.beta[number].tolist()
        ids = [] if reading.tag_ids is None else reading.tag_ids[number].tolist()
        tags = [self.vocabulary.tags[i] for i in ids]
        return [
            AttendedSentence(
                text,
                None if alpha is None else _as_grids(alpha[place], images),
                [] if beta is None else list(zip(tags, beta[place], strict=True)),
            )
            for place, text in enumerate(sentences)
        ]


class _FigureWriter:
    """Draws the attention figures of reports, each to a file of its own.

    Args:
        out: The figures' folder.
        taken: File names of earlier figures to keep.
    """

    def __init__(self, out: AnyPath, taken: Iterable[str]) -> None:
        self.out = out
        self.taken = set(taken)
        self.numbers: Counter[str] = Counter()

    def __call__(
        self,
        name: str,
        pictures: np.ndarray,
        attended: AttendedReport,
        truth: str | None = None,
    ) -> DrawnPrediction:
        # As in `Prediction.draw`.
        from raymed.reports.attention import attention_figure

        # A study's figure has the name of its first image.
        first = name.partition(",")[0] if len(pictures) > 1 else name
        figure = self.out / self._unused_name(Path(first).stem)
        attention_figure(figure, pictures, attended.sentences, attended.report.tags, name, truth)
        return DrawnPrediction(name, attended.report, pictures, attended.sentences, figure)

    def _unused_name(self, stem: str) -> str:
        while True:
            self.numbers[stem] += 1
            number = f"-{self.numbers[stem]}" if self.numbers[stem] > 1 else ""
            name = f"{stem}{number}-attention.png"
            if name not in self.taken:
                self.taken.add(name)
                return name


def _as_grids(alpha: Tensor, images: int) -> np.ndarray:
    """Attention over the regions of I images, [I N] -> [I, h, w]."""
    side = round((len(alpha) / images) ** 0.5)
    return alpha.float().reshape(images, side, side).cpu().numpy()


class _Study(NamedTuple):
    """The images to write a report of: their names, and their pixels, uint8 [I, size, size]."""

    name: str
    pictures: np.ndarray


class _Reader:
    """Reads images for a checkpoint's model.

    Args:
        checkpoint: The checkpoint.
        faults: Receives a message for each image or study that cannot be read.
    """

    def __init__(self, checkpoint: Checkpoint, faults: list[str]) -> None:
        self.size = checkpoint.image_size
        self.most = checkpoint.config.data.images_per_study
        self.faults = faults

    def batches(
        self, paths: Iterable[Path], batch_size: int
    ) -> Iterator[list[tuple[Path, _Study]]]:
        """What each path names, in batches: an image, or images separated by commas."""
        batch = []
        for path in paths:
            if study := self._read(path):
                batch.append((path, study))
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _read(self, path: Path) -> _Study | None:
        # A file's own name may contain a comma.
        files = [path] if os.path.exists(path) else list(map(Path, str(path).split(",")))
        if len(files) > self.most:
            self.faults.append(
                f"{path}: {len(files)} images, but this run reads {self.most} of a study "
                f"(data.images_per_study={self.most}): give fewer, or train a run that reads more"
            )
            return None
        pictures = []
        for file in files:
            try:
                pictures.append(read_image(file, self.size))
            except ImageError as error:
                problem = "no such image file" if not file.exists() else str(error)
                self.faults.append(f"{file}: {problem}; give a PNG, JPEG, TIFF or DICOM image")
                return None
        return _Study(",".join(file.name for file in files), np.stack(pictures))


def _reports(
    report: ReportGenerator, batches: Iterable[list[tuple[Path, _Study]]]
) -> Iterator[tuple[Path, _Study, AttendedReport]]:
    with Progress("writing reports", None) as progress:
        for batch in batches:
            written = report([study.pictures for _, study in batch])
            for (path, study), one in zip(batch, written, strict=True):
                yield path, study, one
                progress.advance()


def _write_record(out: AnyPath, record: Record) -> None:
    with user_output(out / RECORD_FILE) as file:
        file.write_text(json.dumps({KEY: record}, indent=1), encoding="utf-8")


def _line(path: Path, prediction: DrawnPrediction) -> dict[str, Any]:
    report = prediction.report
    return {
        "image": str(path),
        "tags": [{"tag": tag, "probability": share} for tag, share in report.tags[:RANKED_TAGS]],
        "report": report.text,
        "sentences": report.sentences,
        "figure": prediction.figure.name,
    }
