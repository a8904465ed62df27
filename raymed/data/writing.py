"""Writing the files of a prepared dataset."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from raymed.data import split, statistics
from raymed.data.collection import Collection
from raymed.data.destination import Destination
from raymed.data.parts import write_parts
from raymed.data.r2gen_text import R2GenRows
from raymed.data.schema import (
    INFO_FILE,
    REJECTED,
    REJECTED_FILE,
    SCHEMA_VERSION,
    TAGS_FILE,
    WORDS_FILE,
    DatasetInfo,
)
from raymed.data.spool import Rows
from raymed.data.statistics import Counts, LeftOutCounts
from raymed.data.text import Text
from raymed.data.work import Executor
from raymed.errors import UsageError
from raymed.progress import Progress, track
from raymed.sections import PrepareConfig


@dataclass(frozen=True)
class Workspace:
    """Where and how a dataset is prepared."""

    settings: PrepareConfig
    target: Destination
    executor: Executor
    console: Console


def write_dataset(
    workspace: Workspace,
    collection: Collection,
    source: str,
    protocol: str,
    assigned: Sequence[str | None],
    limited: R2GenRows | None = None,
) -> DatasetInfo:
    """Write every file of a dataset.

    Args:
        source: Name of the source.
        protocol: The split protocol that was used.
        assigned: The split of each usable row; None leaves the row out.
        limited: The collection's rows with R2Gen's text, if it was chosen.

    Raises:
        UsageError: The dataset would be unfit for training.
    """
    target, settings = workspace.target, workspace.settings
    splits = _rows_of_splits(collection, assigned)
    rows = limited or collection.rows
    prepared, training, left_out = _count(rows, splits, workspace.console)
    _check_fit_for_training(collection, splits, prepared)
    words = statistics.by_frequency(training.words)
    tags = statistics.by_frequency({tag: training.tags[tag] for tag in prepared.tags})

    target.clear()
    image_count = sum(map(len, splits.values()))
    with Progress("writing images", image_count, workspace.console) as progress:
        parts, rows_hash = write_parts(
            rows, splits, settings.image_size, target, workspace.executor, progress
        )
    (target.final / WORDS_FILE).write_bytes(_json(words))
    (target.final / TAGS_FILE).write_bytes(_json(tags))
    (target.final / REJECTED_FILE).write_bytes(_rejected_table(collection))
    content = json.dumps([settings.image_size, words, tags]).encode() + rows_hash
    studies = [collection.rows.studies[row] for row in collection.usable]
    reasons = Counter(rejected.kind for rejected in collection.rejected)
    info = DatasetInfo(
        schema=SCHEMA_VERSION,
        source=source,
        protocol=protocol,
        seed=settings.seed,
        image_size=settings.image_size,
        counts={name: len(rows) for name, rows in splits.items()},
        leaked=split.leakage(studies, assigned).leaked,
        rejected=dict(reasons.most_common()),
        found=collection.found.statistics(),
        prepared=prepared.statistics(),
        parts=parts,
        content_hash=hashlib.sha256(content).hexdigest(),
        views=settings.views,
        sections=settings.sections,
        text=settings.text,
        r2gen=limited.info if limited else None,
        left_out=(left_out if limited else collection.left_out).shares(),
    )
    # Written last: a folder without this file is not a prepared dataset.
    (target.final / INFO_FILE).write_bytes(info.to_json().encode())
    return info


def _rows_of_splits(collection: Collection, assigned: Sequence[str | None]) -> dict[str, list[int]]:
    splits: dict[str, list[int]] = {name: [] for name in split.SPLITS}
    for row, name in zip(collection.usable, assigned, strict=True):
        if name is None:
            collection.reject_row(row, "no split is named for it")
        else:
            splits[name].append(row)
    return splits


def _count(
    rows: Rows, splits: Mapping[str, Sequence[int]], console: Console
) -> tuple[Counts, Counts, LeftOutCounts]:
    """Return the statistics of the dataset, of its training split, and of what limits cut."""
    prepared, training, left_out = Counts(), Counts(), LeftOutCounts()
    for name, numbers in splits.items():
        for number in track(numbers, f"counting {name} words", len(numbers), console):
            row = rows[number]
            left_out.add(Text(row["sentences"], []))
            for counts in (prepared, training) if name == "train" else (prepared,):
                counts.add(row["study"], row["sentences"], row["tags"])
    return prepared, training, left_out


def _check_fit_for_training(
    collection: Collection, splits: Mapping[str, Sequence[int]], prepared: Counts
) -> None:
    empty = [name for name, rows in splits.items() if not rows]
    if empty:
        counts = ", ".join(f"{name} {len(rows)}" for name, rows in splits.items())
        raise UsageError(
            f"split {' and '.join(empty)} would be empty ({counts}); left out: "
            f"{collection.rejections()}. Every split needs at least one image with a report; "
            "split=study assigns new splits at random"
        )
    if len(prepared.tags) < 2:
        names = ", ".join(repr(tag) for tag in prepared.tags) or "none"
        raise UsageError(
            f"training needs at least 2 different tags, but the images have {names}. Name a "
            "column with tags that differ between images, or omit the tags to use the frequent "
            "words of the reports"
        )


def _rejected_table(collection: Collection) -> bytes:
    """Return the content of ``rejected.parquet``."""
    rows = [asdict(rejected) for rejected in collection.rejected]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, REJECTED), sink)
    return sink.getvalue().to_pybytes()


def _json(counts: dict[str, int]) -> bytes:
    return (json.dumps(counts, indent=0, ensure_ascii=False) + "\n").encode()
