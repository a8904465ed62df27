"""What every source yields: one image and its report, or the reason why there is none."""

from collections import Counter
from collections.abc import Iterable
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
    """In words; details of this one stand behind a colon."""

    @property
    def kind(self) -> str:
        """The reason without its details."""
        return self.reason.partition(": ")[0]


def left_out(rejected: Iterable[Rejected]) -> list[str]:
    """Each kind of reason, the most frequent first, with its count and the first of its images."""
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for row in rejected:
        counts[row.kind] += 1
        name, detail = row.image_id or row.study, row.reason.partition(": ")[2]
        first.setdefault(row.kind, ": ".join(part for part in (name, detail) if part))
    return [
        f"{count:,} ({kind})" + (f", such as {first[kind]}" if first[kind] else "")
        for kind, count in counts.most_common()
    ]
