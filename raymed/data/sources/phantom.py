"""Source: the phantom, simulated chest radiographs with findings at known positions."""

from collections.abc import Iterator
from typing import Annotated

import numpy as np
from pydantic import Field

from raymed.data.examples import Example
from raymed.data.sources.phantom_film import Anatomy, render
from raymed.data.sources.phantom_reports import choose_patient, write_report, write_tags
from raymed.data.sources.source import Source
from raymed.errors import UsageError
from raymed.sections import PrepareConfig

SMALLEST_IMAGE = 32


class PhantomSettings(PrepareConfig):
    """Settings of ``raymed prepare phantom``."""

    studies: Annotated[int, Field(ge=1)] = 1200
    """Number of phantom studies to draw."""


def draw(studies: int, seed: int = 0, image_size: int = 224) -> Iterator[Example]:
    """Draw phantom studies of one image each.

    Study i depends only on `seed` and i, not on the number of studies.

    Args:
        studies: Number of studies.
        seed: Not negative; different seeds give different studies.
        image_size: Pixels per side. A study shows the same anatomy at any size.

    Returns:
        An iterator of examples with an image, uint8 [image_size, image_size], report, tags and
        the bounding boxes of the findings.

    Raises:
        UsageError: `studies` or `seed` is negative, or `image_size` is below `SMALLEST_IMAGE`.
    """
    for name, value, least in (
        ("studies", studies, 0),
        ("seed", seed, 0),
        ("image_size", image_size, SMALLEST_IMAGE),
    ):
        if value < least:
            raise UsageError(f"phantom: {name} must be at least {least}, found {value}")
    return (_draw_study(index, seed, image_size) for index in range(studies))


def _draw_study(index: int, seed: int, image_size: int) -> Example:
    # Independent streams, so that a change to one part leaves the other parts of a study alone.
    choices, anatomy, grain = (np.random.default_rng([seed, index, part]) for part in range(3))
    patient = choose_patient(choices)
    image, findings = render(Anatomy.sample(anatomy), patient, image_size, grain)
    name = f"phantom-{index:06d}"
    return Example(
        image_id=name,
        study=name,
        image=image,
        report=write_report(patient),
        tags=write_tags(patient),
        findings=findings,
    )


SOURCE = Source(
    name="phantom",
    summary="simulated chest radiographs; there is nothing to read",
    read=lambda _path, settings, _print: draw(settings.studies, settings.seed, settings.image_size),
    settings=PhantomSettings,
    count=lambda settings: settings.studies,
)
