"""What every source yields: one image and its report, or the reason why there is none."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Finding:
    """The known place of one finding, in fractions of the image's width and height (0 to 1)."""

    tag: str
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Example:
    """One image with the report of its study, as a source read it, not yet preprocessed."""

    image_id: str
    study: str
    image: Path | np.ndarray
    """A file to decode, or uint8 greyscale pixels [height, width]."""
    report: str
    tags: tuple[str, ...]
    split: str | None = None
    """The split the source itself names (train, val or test), if it names one."""
    view: str | None = None
    findings: tuple[Finding, ...] = field(default=())


@dataclass(frozen=True)
class Rejected:
    """Something the source had to leave out, with the reason in words."""

    image_id: str
    study: str
    reason: str
