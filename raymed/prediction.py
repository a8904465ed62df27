"""Reports for images on disk: needs a checkpoint and the images, nothing else."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from raymed.config import Config
from raymed.data.dataset import Split
from raymed.data.images import ImageError, read_image
from raymed.errors import UsageError
from raymed.evaluation import RANKED_TAGS
from raymed.generation import Report, attended, generate
from raymed.image_files import ImageFiles
from raymed.json_lines import added_lines
from raymed.model.system import Reading
from raymed.progress import Progress
from raymed.provenance import KEY, Record, made_from, refuse_to_overwrite
from raymed.reports.attention import AttendedSentence, attention_figure
from raymed.sections import GenerationConfig
from raymed.storage import AnyPath, user_output
from raymed.training.checkpoint import Checkpoint
from raymed.training.worker import local_device

PREDICTIONS_FILE = "predictions.jsonl"
RECORD_FILE = "made_from.json"


@dataclass(frozen=True)
class Prediction:
    """The report of one image and where its attention figure lies."""

    image: str
    report: Report
    figure: AnyPath


def print_prediction(prediction: Prediction, console: Console) -> None:
    """The five likeliest tags and the report, a sentence to a line."""
    tags = ", ".join(f"{tag} {share:.2f}" for tag, share in prediction.report.tags[:5])
    console.print(prediction.image, style="bold", highlight=False, markup=False, soft_wrap=True)
    for line in (f"tags: {tags}", *prediction.report.sentences, f"attention: {prediction.figure}"):
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)


def predict(
    checkpoint: Checkpoint,
    config: Config,
    images: Sequence[str],
    out: AnyPath,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Prediction]:
    """Write the report of each image file and draw its attention figure to ``out``.

    Each is a line of ``predictions.jsonl`` in ``out`` as it comes: ``image`` (its path), ``tags``
    with their probabilities, ``report``, its ``sentences``, and ``figure``. What they were made
    from is in ``made_from.json``. Lines of other images by the same checkpoint and settings stay.

    Args:
        checkpoint: the model.
        config: the checkpoint's, with what is to differ in ``generation``.
        images: image files, scaled and padded as in training; and folders, as `ImageFiles` reads
            them.
        out: folder; figures are ``<image name>-attention.png``, with a number where a name comes
            again.
        say: told how many files of the folders were passed over, if any.

    Raises:
        UsageError: ``out`` holds predictions by another checkpoint or with other settings, or
            cannot be written; or, once all others are written, naming each image that is missing
            or cannot be read.
    """
    record = made_from(checkpoint, config, None, None)
    figures = sorted(file.name for file in out.glob("*-attention.png"))
    marks = (RECORD_FILE,) if (out / RECORD_FILE).exists() else (PREDICTIONS_FILE, *figures[:1])
    refuse_to_overwrite(out, marks, record)
    files = ImageFiles(images, out)
    bad: list[str] = []
    pictures = _read(files, checkpoint.image_size, config.training.batch_size, bad)
    reports = _reports(Reporter(checkpoint, config.generation), pictures)
    done = 0
    # Nothing is left where not even the first can be written.
    for first in islice(reports, 1):
        _write_record(out, record)
        with added_lines(out / PREDICTIONS_FILE, ImageFiles(images, out)) as lines:
            draw = _Illustrator(out, lines.figures)
            for path, pixels, written in chain([first], reports):
                prediction = draw(path.name, pixels, written)
                lines.add(_line(path, prediction))
                done += 1
                yield prediction
    if files.passed_over:
        say(f"passed over: {files.passed_over} file(s), no images by their names or marks")
    bad += [f"{folder}: there is no image in this folder or below" for folder in files.empty]
    if bad:
        listed = "".join(f"\n  {fault}" for fault in bad)
        raise UsageError(
            f"{len(bad)} of {done + len(bad)} images could not be used; reports of the other "
            f"{done} are in {out}{listed}"
        )


def predict_rows(
    checkpoint: Checkpoint, config: Config, split: Split, rows: Sequence[int], out: AnyPath
) -> Iterator[Prediction]:
    """The reports and figures of rows of a prepared dataset's split, the truth in the figures."""
    report, draw = Reporter(checkpoint, config.generation), _Illustrator(out, ())
    pictures = split.pixels(np.array(rows))
    for row, picture, written in zip(rows, pictures, report(pictures), strict=True):
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
    """Draws the attention figure of one image's report, under a name of its own.

    Args:
        out: the figures' folder.
        taken: names of figures that stay.
    """

    def __init__(self, out: AnyPath, taken: Iterable[str]) -> None:
        self.out = out
        self.taken = set(taken)
        self.numbers: Counter[str] = Counter()

    def __call__(
        self,
        name: str,
        picture: np.ndarray,
        written: AttendedReport,
        truth: str | None = None,
    ) -> Prediction:
        figure = self.out / self._free(Path(name).stem)
        attention_figure(figure, picture, written.sentences, written.report.tags, name, truth)
        return Prediction(name, written.report, figure)

    def _free(self, stem: str) -> str:
        while True:
            self.numbers[stem] += 1
            number = f"-{self.numbers[stem]}" if self.numbers[stem] > 1 else ""
            name = f"{stem}{number}-attention.png"
            if name not in self.taken:
                self.taken.add(name)
                return name


def _square(alpha: Tensor) -> np.ndarray:
    side = round(len(alpha) ** 0.5)
    return alpha.float().reshape(side, side).cpu().numpy()


def _read(
    files: Iterable[Path], size: int, batch: int, bad: list[str]
) -> Iterator[list[tuple[Path, np.ndarray]]]:
    """Images in batches of those that can be read; what is wrong with the others goes to ``bad``.

    Yields:
        paths and pixels, uint8 [size, size].
    """
    waiting = []
    for path in files:
        try:
            waiting.append((path, read_image(path, size)))
        except ImageError as error:
            missing = "no such image file" if not path.exists() else str(error)
            bad.append(f"{path}: {missing}; give a PNG, JPEG, TIFF or DICOM image")
        if len(waiting) == batch:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _reports(
    report: Reporter, batches: Iterable[list[tuple[Path, np.ndarray]]]
) -> Iterator[tuple[Path, np.ndarray, AttendedReport]]:
    with Progress("writing reports", None) as progress:
        for pictures in batches:
            written = report(np.stack([pixels for _, pixels in pictures]))
            for (path, pixels), one in zip(pictures, written, strict=True):
                yield path, pixels, one
                progress.advance()


def _write_record(out: AnyPath, record: Record) -> None:
    with user_output(out / RECORD_FILE) as file:
        file.write_text(json.dumps({KEY: record}, indent=1), encoding="utf-8")


def _line(path: Path, prediction: Prediction) -> dict[str, Any]:
    report = prediction.report
    return {
        "image": str(path),
        "tags": [{"tag": tag, "probability": share} for tag, share in report.tags[:RANKED_TAGS]],
        "report": report.text,
        "sentences": report.sentences,
        "figure": prediction.figure.name,
    }
