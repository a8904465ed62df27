"""Reports for images on disk: needs a checkpoint and the images, nothing else."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from raymed.config import Config
from raymed.data.dataset import Split
from raymed.data.images import ImageError, read_image
from raymed.errors import UsageError
from raymed.generation import Report, generate
from raymed.reports.attention import AttendedSentence, attention_figure
from raymed.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class Prediction:
    """The report of one image and where its attention figure lies."""

    image: str
    report: Report
    figure: Path


def print_prediction(prediction: Prediction, console: Console) -> None:
    """The five likeliest tags and the report, a sentence to a line."""
    tags = ", ".join(f"{tag} {share:.2f}" for tag, share in prediction.report.tags[:5])
    console.print(prediction.image, style="bold", highlight=False, markup=False, soft_wrap=True)
    for line in (f"tags: {tags}", *prediction.report.sentences, f"attention: {prediction.figure}"):
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)


def predict(
    checkpoint: Checkpoint, config: Config, images: Sequence[str], out: Path
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
    write = _Writer(checkpoint, config, out)
    for image, picture in zip(images, pictures, strict=True):
        yield write(Path(image).name, picture)


def predict_rows(
    checkpoint: Checkpoint, config: Config, split: Split, rows: Sequence[int], out: Path
) -> Iterator[Prediction]:
    """The same for rows of a prepared data set's split; the figures show the ground truth too."""
    write = _Writer(checkpoint, config, out)
    for row, picture in zip(rows, split.pixels(np.array(rows)), strict=True):
        truth = ". ".join(split.sentences[row])
        yield write(split.image_ids[row], picture, truth)


class _Writer:
    """Writes one image's report and draws its figure; holds the model between images."""

    def __init__(self, checkpoint: Checkpoint, config: Config, out: Path) -> None:
        self.vocabulary = checkpoint.vocabulary
        self.model = checkpoint.build_model()
        self.settings = config.generation
        self.out = out
        self.names: Counter[str] = Counter()

    def __call__(self, name: str, picture: np.ndarray, truth: str | None = None) -> Prediction:
        generated = generate(self.model, torch.from_numpy(picture)[None], self.settings)
        (report,) = generated.reports(self.vocabulary)
        topics = generated.topics
        tags = [self.vocabulary.tags[i] for i in topics.tag_ids[0].tolist()]
        attended = [
            AttendedSentence(text, _square(alpha), list(zip(tags, beta.tolist(), strict=True)))
            # Topics go on to the longest report there may be; sentences end where it stopped.
            for text, alpha, beta in zip(
                report.sentences, topics.alpha[0], topics.beta[0], strict=False
            )
        ]
        stem = Path(name).stem
        self.names[stem] += 1
        number = f"-{self.names[stem]}" if self.names[stem] > 1 else ""
        figure = self.out / f"{stem}{number}-attention.png"
        try:
            attention_figure(figure, picture, attended, report.tags, name, truth)
        except OSError as error:
            raise UsageError(f"{figure}: cannot be written ({error.strerror or error})") from error
        return Prediction(name, report, figure)


def _square(alpha: Tensor) -> np.ndarray:
    side = round(len(alpha) ** 0.5)
    return alpha.reshape(side, side).numpy()


def _read(path: Path, size: int) -> np.ndarray:
    if not path.is_file():
        raise UsageError(f"{path}: no such image file")
    try:
        return read_image(path, size)
    except ImageError as error:
        raise UsageError(f"{path}: {error}; give a PNG, JPEG or TIFF image") from error
