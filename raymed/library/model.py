"""A trained model, opened to write reports of images."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, overload

import numpy as np
from rich.console import Console

from raymed import config as configuration
from raymed.config import Config
from raymed.errors import UsageError
from raymed.library.given_images import GivenImage, ValueRange, read_given_image
from raymed.library.session import choose_console
from raymed.prediction import Prediction, ReportGenerator
from raymed.progress import Progress
from raymed.setting_values import GivenSettings
from raymed.storage import GivenPath, as_path
from raymed.training.checkpoint import Checkpoint

GivenStudy = GivenImage | tuple[GivenImage, ...] | list[GivenImage]
"""An image, or the images of one study."""


def load(
    run: GivenPath,
    settings: GivenSettings = (),
    *,
    console: Console | None = None,
    quiet: bool = False,
) -> "Model":
    """Open a trained model, on the GPU if there is one.

    It needs only the checkpoint, not the dataset.

    Args:
        run: The folder of a run, of which the best checkpoint is opened, or of a checkpoint.
        settings: ``generation`` keys, as in ``{"generation.beam_width": 4}``.
        console: Where predictions show their progress; None: standard output.
        quiet: Show nothing.

    Raises:
        UsageError: There is no checkpoint, it is damaged, or a setting is not valid.
    """
    checkpoint = Checkpoint.open(as_path(run))
    config = configuration.apply_settings(checkpoint.config, settings, ("generation.",))
    return Model(checkpoint, config, choose_console(console, quiet))


class Model:
    """A trained model that writes reports. Made by `load`.

    Attributes:
        checkpoint: The checkpoint it was loaded from.
        config: The checkpoint's configuration, with the settings given to `load`.
    """

    def __init__(self, checkpoint: Checkpoint, config: Config, console: Console) -> None:
        self.checkpoint = checkpoint
        self.config = config
        self._console = console
        self._write = ReportGenerator(checkpoint, config.generation)

    def __repr__(self) -> str:
        return f"Model({str(self.checkpoint.path)!r}: {self.config.model.system})"

    @overload
    def predict(
        self, images: list[Any], value_range: ValueRange | None = None
    ) -> list[Prediction]: ...
    @overload
    def predict(
        self, images: GivenImage | tuple[GivenImage, ...], value_range: ValueRange | None = None
    ) -> Prediction: ...
    def predict(
        self,
        images: GivenStudy | list[Any],
        value_range: ValueRange | None = None,
    ) -> Prediction | list[Prediction]:
        """Write the report of an image, or of each item of a list.

        Args:
            images: A file (PNG, JPEG, TIFF or DICOM), a Pillow image or an array; for a run with
                ``data.images_per_study`` above 1 also a tuple of these, the images of one study.
                Or a list of such. Each image is scaled and padded as in training. Arrays are [H, W]
                or [H, W, C] with 1 (grey), 3 (RGB) or 4 (RGBA) channels, uint8 from 0, black, to
                255, white.
            value_range: The values of arrays that are black and white, for all types but uint8: a
                pair of numbers between which all values lie, or ``"minmax"``: each array's least
                and greatest value, as in image files of 16 bits. Other images ignore it.

        Returns:
            The report with its tags and attention; a list of them for a list.

        Raises:
            UsageError: An image cannot be read, or can be read in more than one way.
        """
        if isinstance(images, list):
            named = ((f"images[{number}]", one) for number, one in enumerate(images))
            return list(self._predict_each(named, value_range, len(images)))
        (prediction,) = self._predict_each([("image", images)], value_range, 1)
        return prediction

    def stream(
        self, images: Iterable[GivenStudy], value_range: ValueRange | None = None
    ) -> Iterator[Prediction]:
        """The reports of any number of images, one after another; few are in memory at a time.

        Args:
            images: The items of the list that `predict` takes, from any iterable.
            value_range: As in `predict`.

        Raises:
            UsageError: As `predict`; the reports of earlier images have been returned by then.
        """
        named = ((f"images[{number}]", one) for number, one in enumerate(images))
        return self._predict_each(named, value_range, None)

    def _predict_each(
        self,
        named: Iterable[tuple[str, GivenStudy]],
        value_range: ValueRange | None,
        total: int | None,
    ) -> Iterator[Prediction]:
        studies = (self._read(label, given, value_range) for label, given in named)
        with Progress("writing reports", total, self._console) as progress:
            while batch := list(islice(studies, self.config.training.batch_size)):
                reports = self._write([pictures for _, pictures in batch])
                for (name, pictures), (report, sentences) in zip(batch, reports, strict=True):
                    yield Prediction(name, report, pictures, sentences)
                progress.advance(len(batch))

    def _read(
        self, label: str, given: GivenStudy, value_range: ValueRange | None
    ) -> tuple[str, np.ndarray]:
        """The name of an example, and the pixels of its images, uint8 [I, size, size]."""
        size, most = self.checkpoint.image_size, self.config.data.images_per_study
        if not isinstance(given, list | tuple):
            name, pixels = read_given_image(given, size, value_range, label)
            return name, pixels[None]
        if not 1 <= len(given) <= most:
            raise UsageError(
                f"{label}: {len(given)} images of one study, but this run reads 1 to {most} "
                f"(data.images_per_study={most}): several examples are a list, and the images of "
                "one study a tuple"
            )
        each = [
            read_given_image(image, size, value_range, f"{label}[{number}]")
            for number, image in enumerate(given)
        ]
        return ",".join(name for name, _ in each), np.stack([pixels for _, pixels in each])
