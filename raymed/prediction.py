"""Reports for images on disk: needs a checkpoint and the images, nothing else."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from raymed.config import Config
from raymed.data.dataset import Split
from raymed.data.images import ImageError, read_image
from raymed.errors import UsageError
from raymed.generation import Report, attended, generate
from raymed.model.system import Reading
from raymed.reports.attention import AttendedSentence, attention_figure
from raymed.sections import GenerationConfig
from raymed.storage import Place
from raymed.training.checkpoint import Checkpoint
from raymed.training.worker import local_device


@dataclass(frozen=True)
class Prediction:
    """The report of one image and where its attention figure lies."""

    image: str
    report: Report
    figure: Place


def print_prediction(prediction: Prediction, console: Console) -> None:
    """The five likeliest tags and the report, a sentence to a line."""
    tags = ", ".join(f"{tag} {share:.2f}" for tag, share in prediction.report.tags[:5])
    console.print(prediction.image, style="bold", highlight=False, markup=False, soft_wrap=True)
    for line in (f"tags: {tags}", *prediction.report.sentences, f"attention: {prediction.figure}"):
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)


def predict(
    checkpoint: Checkpoint, config: Config, images: Sequence[str], out: Place
) -> Iterator[Prediction]:
    """Write the report of each image file and draw its attention figure to ``out``.

    Args:
        checkpoint: the model.
        config: the checkpoint's, with what is to differ in ``generation``.
        images: image files; each is scaled and padded as in training.
        out: folder for ``<image name>-attention.png``, with a number where a name comes again.

    Raises:
        UsageError: a file is missing or no image, or ``out`` cannot be written.
    """
    pictures = [_read(Path(image), checkpoint.image_size) for image in images]
    report, draw = Reporter(checkpoint, config.generation), _Illustrator(out)
    for image, picture in zip(images, pictures, strict=True):
        (written,) = report(picture[None])
        yield draw(Path(image).name, picture, written)


def predict_rows(
    checkpoint: Checkpoint, config: Config, split: Split, rows: Sequence[int], out: Place
) -> Iterator[Prediction]:
    """The same for rows of a prepared data set's split; the figures show the ground truth too."""
    report, draw = Reporter(checkpoint, config.generation), _Illustrator(out)
    for row, picture in zip(rows, split.pixels(np.array(rows)), strict=True):
        (written,) = report(picture[None])
        yield draw(split.image_ids[row], picture, written, ". ".join(split.sentences[row]))


class AttendedReport(NamedTuple):
    """A generated report, and its sentences with the attention that the system has."""

    report: Report
    sentences: list[AttendedSentence]


class Reporter:
    """Writes the reports of pictures by one checkpoint; holds the model between calls."""

    def __init__(self, checkpoint: Checkpoint, settings: GenerationConfig) -> None:
        self.device = local_device()
        self.model = checkpoint.build_model(self.device)
        self.vocabulary = checkpoint.vocabulary
        self.settings = settings

    def __call__(self, pictures: np.ndarray) -> list[AttendedReport]:
        """The report of each picture, uint8 [B, H, W]."""
        images = torch.from_numpy(pictures).to(self.device)
        generated = attended(self.model, generate(self.model, images, self.settings))
        return [
            AttendedReport(report, self._attended(generated.reading, image, report.sentences))
            for image, report in enumerate(generated.reports(self.vocabulary))
        ]

    def _attended(
        self, reading: Reading, image: int, sentences: Sequence[str]
    ) -> list[AttendedSentence]:
        alpha = None if reading.alpha is None else reading.alpha[image]
        beta = None if reading.beta is None else reading.beta[image].tolist()
        ids = [] if reading.tag_ids is None else reading.tag_ids[image].tolist()
        tags = [self.vocabulary.tags[i] for i in ids]
        return [
            AttendedSentence(
                text,
                None if alpha is None else _square(alpha[number]),
                [] if beta is None else list(zip(tags, beta[number], strict=True)),
            )
            for number, text in enumerate(sentences)
        ]


class _Illustrator:
    """Draws the attention figure of one image's report, under a name of its own."""

    def __init__(self, out: Place) -> None:
        self.out = out
        self.names: Counter[str] = Counter()

    def __call__(
        self,
        name: str,
        picture: np.ndarray,
        written: AttendedReport,
        truth: str | None = None,
    ) -> Prediction:
        stem = Path(name).stem
        self.names[stem] += 1
        number = f"-{self.names[stem]}" if self.names[stem] > 1 else ""
        figure = self.out / f"{stem}{number}-attention.png"
        attention_figure(figure, picture, written.sentences, written.report.tags, name, truth)
        return Prediction(name, written.report, figure)


def _square(alpha: Tensor) -> np.ndarray:
    side = round(len(alpha) ** 0.5)
    return alpha.float().reshape(side, side).cpu().numpy()


def _read(path: Path, size: int) -> np.ndarray:
    if not path.is_file():
        raise UsageError(f"{path}: no such image file")
    try:
        return read_image(path, size)
    except ImageError as error:
        raise UsageError(f"{path}: {error}; give a PNG, JPEG, TIFF or DICOM image") from error
