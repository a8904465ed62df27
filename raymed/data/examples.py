"""What sources yield: an image with its report, or the reason why it cannot be used."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ImageInput = Path | bytes | np.ndarray
"""An image file, the content of one, or greyscale pixels, uint8 [height, width]."""


@dataclass(frozen=True)
class Finding:
    """The bounding box of a finding, as fractions of the image's width and height (0 to 1)."""

    tag: str
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Example:
    """An image with the report of its study, before any preprocessing."""

    image_id: str
    study: str
    image: ImageInput
    report: str
    tags: tuple[str, ...]
    split: str | None = None
    """The split that the source names, if it does."""
    view: str | None = None
    findings: tuple[Finding, ...] = field(default=())
    record: str | None = None
    """Where the source keeps the report, if studies may have several; by default the study. The
    images of a record follow each other."""


@dataclass(frozen=True)
class Rejected:
    """An image or report that is left out, and why."""

    image_id: str
    study: str
    reason: str
    """A kind of reason, optionally followed by a colon and details."""

    @property
    def kind(self) -> str:
        """The reason without details."""
        return self.reason.partition(": ")[0]


def rejection_summary(rejected: Iterable[Rejected]) -> list[str]:
    """Describe each kind of reason, most frequent first, with its count and an example."""
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for each in rejected:
        counts[each.kind] += 1
        name, detail = each.image_id or each.study, each.reason.partition(": ")[2]
        first.setdefault(each.kind, ": ".join(part for part in (name, detail) if part))
    return [
        f"{count:,} ({kind})" + (f", such as {first[kind]}" if first[kind] else "")
        for kind, count in counts.most_common()
    ]
