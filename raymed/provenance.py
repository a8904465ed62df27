"""What results were made from: recorded with them, so that others do not silently replace them."""

import hashlib
import html
import json
import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.errors import UsageError
from raymed.storage import AnyPath, as_path, local_copy
from raymed.training.checkpoint import ENCODER_FILE, MODEL_FILE, Checkpoint

KEY = "made_from"
"""Key of the record in a JSON file, a Parquet file's metadata and a page's `meta` element."""
IN_PAGE = re.compile(f'<meta name="{KEY}" content="([^"]*)">')
Record = dict[str, Any]


def made_from(
    checkpoint: Checkpoint, config: Config, dataset: PreparedDataset | None, split: str | None
) -> Record:
    """The record of what results were made from.

    Args:
        checkpoint: The checkpoint that wrote the reports.
        config: The checkpoint's configuration, with the settings of this command applied.
        dataset: The dataset of the images; None if they are image files.
        split: The dataset's split.
    """
    generation = config.generation.model_dump(mode="json")
    data = dataset and {
        "path": str(as_path(dataset.path).absolute()),
        "content_hash": dataset.info.content_hash,
        "split": split,
    }
    return {
        "raymed": version("raymed"),
        "checkpoint": {
            "path": str(checkpoint.path.absolute()),
            "epoch": checkpoint.epoch,
            "weights": _weights_hash(checkpoint),
            "trained_on": checkpoint.content_hash,
        },
        "data": data,
        "settings": {
            "model.top_tags": config.model.top_tags,
            **{f"generation.{key}": value for key, value in generation.items()},
        },
        "precision": config.training.precision,
    }


def refuse_to_overwrite(out: AnyPath, names: Sequence[str], record: Record) -> None:
    """See that result files do not exist yet, or were made from the same things.

    A dataset or a checkpoint may have been moved, as long as its content is the same.

    Args:
        out: The files' folder.
        names: The files' names: JSON, Parquet or a page, each with a record in it.
        record: The record of the new results.

    Raises:
        UsageError: Names the file and what differs.
    """
    for file in (out / name for name in names):
        if not file.exists():
            continue
        before = _record_of(file)
        changed = _differences(before, record) if before is not None else []
        if before is None or changed:
            why = f"was made from something else ({'; '.join(changed)})"
            why = why if changed else "does not say what it was made from"
            raise UsageError(
                f"{file}: {why} and will not be overwritten: choose another folder with "
                "out=FOLDER, or delete the file"
            )


def with_record(schema: pa.Schema, record: Record) -> pa.Schema:
    """The schema of a Parquet file with the record in its metadata."""
    return schema.with_metadata({KEY: json.dumps(record)})


def _record_of(file: AnyPath) -> Record | None:
    try:
        if file.name.endswith(".parquet"):
            with local_copy(file) as local:
                metadata = pq.read_schema(local).metadata or {}
            record = json.loads(metadata[KEY.encode()])
        elif file.name.endswith(".html"):
            page = IN_PAGE.search(file.read_text(encoding="utf-8"))
            record = json.loads(html.unescape(page[1])) if page else None
        else:
            record = json.loads(file.read_text(encoding="utf-8"))[KEY]
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None
    return record if isinstance(record, dict) else None


def _differences(before: Record, now: Record) -> list[str]:
    """What differs, paths aside, as ``key: old -> new``."""
    old, new = _flat(before), _flat(now)
    return [
        f"{key}: {_shown(old.get(key))} -> {_shown(new.get(key))}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key) and not key.endswith("path")
    ]


def _flat(record: Record, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            # The user knows settings by their own keys.
            below = prefix if key == "settings" else f"{prefix}{key}."
            flat |= _flat(value, below)
        else:
            flat[prefix + key] = value
    return flat


def _shown(value: Any) -> str:
    is_hash = isinstance(value, str) and len(value) == 64
    return value[:12] if is_hash else json.dumps(value, ensure_ascii=False)


def _weights_hash(checkpoint: Checkpoint) -> str:
    digest = hashlib.sha256()
    for name in (MODEL_FILE, ENCODER_FILE):
        if (checkpoint.path / name).is_file():
            with local_copy(checkpoint.path / name) as local, local.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
