"""What a prepared dataset holds: the contract between preparing it and opening it."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

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
    """Return the columns of a Parquet part; pixels are uint8 greyscale, row after row."""
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
    """Of the file's bytes, in hex."""


@dataclass(frozen=True)
class DatasetInfo:
    """``dataset.json``: what a prepared dataset is and how it was made."""

    schema: int
    source: str
    protocol: str
    """Split protocol: study, paper, given or r2gen."""
    seed: int
    image_size: int
    """Side of the square images, in pixels."""
    counts: dict[str, int]
    """Images per split."""
    leaked: int
    """Test images whose study also has an image in training."""
    rejected: dict[str, int]
    """Reason (without its details) -> how many were left out."""
    found: Statistics
    """Over every image-report pair of the source, whether or not its image could be read."""
    prepared: Statistics
    """Over the images of the prepared dataset."""
    parts: dict[str, list[Part]]
    content_hash: str
    """SHA-256 over the rows of each split, the words and the tags; nothing else goes in."""
    views: str = "all"
    """Views that were kept: all, frontal or lateral."""
    left_out: LeftOut | None = None
    """Of every report found; None of a dataset that was prepared before this was counted."""

    def to_json(self) -> str:
        """Return the text of ``dataset.json``."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "DatasetInfo":
        """Return what a parsed ``dataset.json`` says; KeyError or TypeError if it is damaged."""
        left_out = content.get("left_out")
        return cls(
            **{
                **content,
                "left_out": LeftOut(**left_out) if left_out else None,
                "found": Statistics(**content["found"]),
                "prepared": Statistics(**content["prepared"]),
                "parts": {
                    split: [Part(**part) for part in parts]
                    for split, parts in content["parts"].items()
                },
            }
        )
