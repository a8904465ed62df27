"""Opening a prepared dataset, whose texts and pixels are memory-mapped from a local cache.

The cache holds each split as one Arrow file that all processes of a node map into memory. A process
needs almost no memory of its own, and the kernel can evict what is not in use.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymed.cache import cache_folder
from raymed.data.codes import FIELDS, Categories, CodedRows
from raymed.data.examples import Finding
from raymed.data.mapped import Column, gather, map_batches, rows_of
from raymed.data.schema import (
    INFO_FILE,
    SCHEMA_VERSION,
    TAGS_FILE,
    WORDS_FILE,
    DatasetInfo,
    Part,
    part_schema,
)
from raymed.errors import UsageError
from raymed.locks import file_lock
from raymed.progress import Progress
from raymed.storage import as_path, atomic_path, download, file_stamp, reason

_digests: dict[tuple[str, int, int], str] = {}
"""Hashes of local copies of parts, keyed by path, size and modification time."""
_BATCH_ROWS = 256
"""Rows per record batch of the cache (except the last), so that rows are found by division."""

T = TypeVar("T")


class PreparedDataset:
    """A prepared dataset: its metadata, words, tags and splits."""

    def __init__(
        self,
        path: str,
        info: DatasetInfo,
        words: dict[str, int],
        tags: list[str],
    ) -> None:
        self.path = path
        self.info = info
        self.words = words
        """Word -> occurrences in the training split, most frequent first."""
        self.tags = tags
        """Tags of the whole dataset, those most frequent in the training split first."""

    @classmethod
    def open(cls, path: str | Path) -> "PreparedDataset":
        """Open a folder, or a URI that pyarrow supports (``s3://``, ``gs://``).

        Raises:
            UsageError: It is not a prepared dataset, or has another schema version.
        """
        folder, path = as_path(path), str(path)
        try:
            content = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
        except UsageError:
            raise
        except OSError as error:
            raise UsageError(
                f"{path}: not a prepared dataset: it has no readable {INFO_FILE}. Create one with "
                "`raymed prepare`"
            ) from error
        except ValueError as error:
            raise _damaged(path, INFO_FILE) from error
        version = content.get("schema") if isinstance(content, dict) else None
        if version != SCHEMA_VERSION:
            raise UsageError(
                f"{path}: prepared dataset of schema version {version}, but this version of raymed "
                f"reads version {SCHEMA_VERSION}: prepare it again"
            )
        try:
            info = DatasetInfo.from_json(content)
        except (KeyError, TypeError, AttributeError) as error:
            raise _damaged(path, INFO_FILE) from error
        counts = {}
        for name in (WORDS_FILE, TAGS_FILE):
            try:
                counts[name] = json.loads((folder / name).read_text(encoding="utf-8"))
            except UsageError:
                raise
            except (OSError, ValueError) as error:
                raise _damaged(path, name) from error
        return cls(path, info, counts[WORDS_FILE], list(counts[TAGS_FILE]))

    def split(self, name: str) -> "Split":
        """Open the split ``train``, ``val`` or ``test``.

        If it is not in the local cache, one process per node copies it while the others wait.

        Raises:
            UsageError: There is no such split, a part of it is missing or damaged, or the cache
                cannot be written.
        """
        if name not in self.info.parts:
            raise UsageError(f"{self.path}: no split {name!r}; it has {', '.join(self.info.parts)}")
        cached = cache_folder(self.info.content_hash) / f"{name}.arrow"
        rows, size = self.info.counts[name], self.info.image_size
        schema = pa.schema([*part_schema(size), *FIELDS])
        lengths = [min(_BATCH_ROWS, rows - start) for start in range(0, rows, _BATCH_ROWS)]
        batches = map_batches(cached, schema, lengths)
        if batches is None:
            try:
                with (
                    Progress(f"copying the {name} images to the cache", rows) as progress,
                    file_lock(cached.with_suffix(".lock")),
                ):
                    batches = map_batches(cached, schema, lengths)
                    if batches is None:
                        self._fill_cache(name, cached, schema, progress)
                        batches = map_batches(cached, schema, lengths)
            except UsageError:
                raise
            except OSError as error:
                raise UsageError(
                    f"{cached.parent}: cannot write the cache of the dataset ({reason(error)}); "
                    f"its pixels need {rows * size * size / 2**20:,.0f} MiB. Free some space, or "
                    "set XDG_CACHE_HOME to a folder with enough space, on a disk with file locks"
                ) from error
            assert batches is not None
        return Split(batches, size)

    def _fill_cache(self, name: str, cached: Path, schema: pa.Schema, progress: Progress) -> None:
        # Left by a process that was killed while writing this file.
        for leftover in cached.parent.glob(f".{cached.name}.*.partial"):
            leftover.unlink(missing_ok=True)
        parts, columns = self.info.parts[name], part_schema(self.info.image_size)
        texts = pa.schema([columns.field("sentences"), columns.field("tags")])
        categories = Categories.of(self._read_part(part, texts) for part in parts)
        schema = categories.add_to(schema)
        with atomic_path(cached) as partial, pa.ipc.new_file(str(partial), schema) as writer:
            waiting = schema.empty_table()
            for part in parts:
                read = self._read_part(part, columns)
                read = pa.table([*read.columns, *categories.encode(read)], schema=schema)
                waiting = pa.concat_tables([waiting, read])
                full = waiting.num_rows // _BATCH_ROWS * _BATCH_ROWS
                _write_batches(writer, waiting.slice(0, full))
                waiting = waiting.slice(full)
                progress.advance(part.rows)
            _write_batches(writer, waiting)

    def _read_part(self, part: Part, schema: pa.Schema) -> pa.Table:
        file = self._local(part)
        try:
            table = pq.read_table(
                file, columns=schema.names, page_checksum_verification=True, partitioning=None
            ).cast(schema)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise _damaged(self.path, part.file) from error
        if table.num_rows != part.rows:
            raise _damaged(self.path, part.file)
        return table

    def _local(self, part: Part) -> Path:
        """Return a part as a local file; if the dataset is at a URI, as a copy in the cache.

        One process per node downloads it, while the others wait. The first to open the copy
        verifies its hash.
        """
        source = as_path(self.path) / part.file
        if isinstance(source, Path):
            return source
        cached = cache_folder(self.info.content_hash, "parts") / part.file
        try:
            with file_lock(cached.with_suffix(".lock")):
                if cached.exists() and _matches(cached, part):
                    return cached
                with atomic_path(cached) as partial:
                    download(source, partial)
                    if not _matches(partial, part):
                        raise _damaged(self.path, part.file)
        except FileNotFoundError as error:
            raise _damaged(self.path, part.file) from error
        except UsageError:
            raise
        except OSError as error:
            raise UsageError(
                f"{cached.parent}: cannot store a copy of {source} ({reason(error)}); free some "
                "space, or set XDG_CACHE_HOME to a folder with enough space"
            ) from error
        return cached


class Split:
    """One split: sequences with an entry per image, decoded at each access, and the pixels."""

    def __init__(self, batches: Sequence[pa.RecordBatch], size: int) -> None:
        def column(name: str, decode: Callable[[Any], T]) -> Column[T]:
            return Column([batch.column(name) for batch in batches], _BATCH_ROWS, decode)

        self.image_ids: Column[str] = column("image_id", _identity)
        self.studies: Column[str] = column("study", _identity)
        self.views: Column[str | None] = column("view", _identity)
        self.sentences: Column[list[str]] = column("sentences", _identity)
        self.tags: Column[list[str]] = column("tags", _identity)
        self.findings: Column[list[Finding]] = column(
            "findings", lambda findings: [Finding(**finding) for finding in findings]
        )
        self.finding_names: Column[list[str]] = self.findings.map(
            lambda findings: [finding.tag for finding in findings]
        )
        self.references: Column[str] = self.sentences.map(" ".join)
        """The full preprocessed text of each image's report."""
        self.codes = CodedRows(batches, _BATCH_ROWS)
        """Reports and tags as integer codes."""
        self._pixels = [
            rows_of(batch.column("pixels"), (size, size), np.uint8) for batch in batches
        ]

    def __len__(self) -> int:
        return len(self.image_ids)

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        """Copy the pixels of some images out of mapped memory.

        Args:
            rows: Row numbers [n], each from 0 to ``len(self) - 1``.

        Returns:
            uint8 greyscale [n, size, size].

        Raises:
            IndexError: A row number is out of range.
        """
        return gather(self._pixels, _BATCH_ROWS, rows)

    def numbers(self) -> dict[str, int]:
        """The row of each image, by its id."""
        return {name: row for row, name in enumerate(self.image_ids)}

    def pictures(self, rows: np.ndarray) -> list[np.ndarray]:
        """The pixels of some images, uint8 [1, size, size] each, as of examples of one image."""
        return list(self.pixels(rows)[:, None])


def _identity(value: Any) -> Any:
    return value


def _write_batches(writer: pa.ipc.RecordBatchFileWriter, table: pa.Table) -> None:
    # Chunks are joined first, because the batches of a table never span two chunks.
    for batch in table.combine_chunks().to_batches(max_chunksize=_BATCH_ROWS):
        writer.write_batch(batch)


def _matches(file: Path, part: Part) -> bool:
    """Whether a local file has the hash of a part; computed once per process."""
    key = file_stamp(file)
    if key not in _digests:
        with file.open("rb") as content:
            _digests[key] = hashlib.file_digest(content, "sha256").hexdigest()
    return _digests[key] == part.sha256


def _damaged(path: str, file: str) -> UsageError:
    return UsageError(f"{path}: {file} is missing or damaged: prepare or copy the dataset again")
