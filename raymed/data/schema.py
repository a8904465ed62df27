"""The format of a prepared dataset: the contract between preparing and opening it."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raymed.data.r2gen_text import R2GenText
from raymed.data.statistics import LeftOut, Statistics

SCHEMA_VERSION = 2
INFO_FILE = "dataset.json"
WORDS_FILE = "words.json"
TAGS_FILE = "tags.json"
REJECTED_FILE = "rejected.parquet"

FINDING = pa.struct(
    [
        ("tag", pa.string()),
        ("left", pa.float64()),
        ("top", pa.float64()),
        ("right", pa.float64()),
        ("bottom", pa.float64()),
    ]
)
REJECTED = pa.schema([("image_id", pa.string()), ("study", pa.string()), ("reason", pa.string())])


def part_schema(image_size: int) -> pa.Schema:
    """Return the columns of a Parquet part; pixels are uint8 greyscale in row-major order."""
    return pa.schema(
        [
            ("image_id", pa.string()),
            ("study", pa.string()),
            ("view", pa.string()),
            ("sentences", pa.list_(pa.string())),
            ("tags", pa.list_(pa.string())),
            ("findings", pa.list_(FINDING)),
            ("pixels", pa.binary(image_size * image_size)),
        ]
    )


@dataclass(frozen=True)
class Part:
    """One Parquet file of a split."""

    file: str
    rows: int
    sha256: str
    """SHA-256 of the file, in hex."""


@dataclass(frozen=True)
class DatasetInfo:
    """``dataset.json``: what a prepared dataset contains and how it was made."""

    schema: int
    source: str
    protocol: str
    """Split protocol: study, paper, given or r2gen."""
    seed: int
    image_size: int
    """Side of the square images in pixels."""
    counts: dict[str, int]
    """Images per split."""
    leaked: int
    """Test images whose study also has an image in training."""
    rejected: dict[str, int]
    """Reason without details -> number of images and reports left out."""
    found: Statistics
    """Statistics of every image-report pair in the source, whether or not the image is usable."""
    prepared: Statistics
    """Statistics of the prepared dataset."""
    parts: dict[str, list[Part]]
    content_hash: str
    """SHA-256 of the image size, words, tags and the rows of each split, and of nothing else."""
    views: str = "all"
    """The views kept: all, frontal or lateral."""
    sections: str = "both"
    """Of reports in sections, those that are the text: findings, impression or both."""
    text: str = "paper"
    """How reports become words: paper or r2gen."""
    r2gen: R2GenText | None = None
    """R2Gen's rules, if ``text`` is r2gen."""
    left_out: LeftOut | None = None
    """For all reports in the source; None if the dataset was prepared by an older version."""

    def to_json(self) -> str:
        """Return the content of ``dataset.json``."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "DatasetInfo":
        """Convert a parsed ``dataset.json``; KeyError or TypeError if it is damaged."""
        left_out, r2gen = content.get("left_out"), content.get("r2gen")
        return cls(
            **{
                **content,
                "left_out": LeftOut(**left_out) if left_out else None,
                "r2gen": R2GenText(**r2gen) if r2gen else None,
                "found": Statistics(**content["found"]),
                "prepared": Statistics(**content["prepared"]),
                "parts": {
                    split: [Part(**part) for part in parts]
                    for split, parts in content["parts"].items()
                },
            }
        )
