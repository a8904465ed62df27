"""Opening a prepared dataset: its texts and pixels, mapped from a local cache.

The cache holds each split as one Arrow file that all processes of a node map into memory, so a
process holds next to nothing of its own for an image, and the kernel can drop what it does not use.
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
from raymed.locks import exclusive
from raymed.progress import Progress
from raymed.storage import download, place, reason, stamp, written_whole

_digests: dict[tuple[str, int, int], str] = {}
"""Hashes of local copies of parts, by what tells one file from another."""
_BATCH_ROWS = 256
"""Rows of every record batch of the cache but the last, so a row is found by arithmetic."""

T = TypeVar("T")


class PreparedDataset:
    """A prepared dataset: what it is, its words and tags, and its splits."""

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
        """Tags of the whole dataset, most frequent in the training split first."""

    @classmethod
    def open(cls, path: str | Path) -> "PreparedDataset":
        """Open a folder, or a URI that pyarrow knows (``s3://``, ``gs://``).

        Raises:
            UsageError: it is not a prepared dataset, or one of another schema version.
        """
        folder, path = place(path), str(path)
        try:
            content = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
        except UsageError:
            raise
        except OSError as error:
            raise UsageError(
                f"{path}: not a prepared dataset: it has no readable {INFO_FILE}. Make one with "
                "`raymed prepare`"
            ) from error
        except ValueError as error:
            raise _damaged(path, INFO_FILE) from error
        version = content.get("schema") if isinstance(content, dict) else None
        if version != SCHEMA_VERSION:
            raise UsageError(
                f"{path}: prepared dataset of schema version {version}, and this raymed reads "
                f"version {SCHEMA_VERSION}: prepare it again"
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

        It is put into the local cache if it is not there yet: by one process of a node, for which
        the others wait.

        Raises:
            UsageError: there is no such split, a part of it is missing or damaged, or the cache
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
                    exclusive(cached.with_suffix(".lock")),
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
                    f"its pixels need {rows * size * size / 2**20:,.0f} MiB. Make room, or set "
                    "XDG_CACHE_HOME to a folder with room, on a disk that has file locks"
                ) from error
            assert batches is not None
        return Split(batches, size)

    def _fill_cache(self, name: str, cached: Path, schema: pa.Schema, progress: Progress) -> None:
        # Of a process that was killed while it wrote this file.
        for left in cached.parent.glob(f".{cached.name}.*.partial"):
            left.unlink(missing_ok=True)
        parts, columns = self.info.parts[name], part_schema(self.info.image_size)
        texts = pa.schema([columns.field("sentences"), columns.field("tags")])
        lists = Categories.of(self._read_part(part, texts) for part in parts)
        schema = lists.kept_in(schema)
        with written_whole(cached) as partial, pa.ipc.new_file(str(partial), schema) as writer:
            waiting = schema.empty_table()
            for part in parts:
                read = self._read_part(part, columns)
                read = pa.table([*read.columns, *lists.columns(read)], schema=schema)
                waiting = pa.concat_tables([waiting, read])
                whole = waiting.num_rows // _BATCH_ROWS * _BATCH_ROWS
                _write_batches(writer, waiting.slice(0, whole))
                waiting = waiting.slice(whole)
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
        """A part as a local file: of a dataset at a URI, one in this node's cache.

        One process of a node fetches it, and the others wait for it and use it too. Whoever opens
        it first sees that it holds what the dataset says it does.
        """
        source = place(self.path) / part.file
        if isinstance(source, Path):
            return source
        cached = cache_folder(self.info.content_hash, "parts") / part.file
        try:
            with exclusive(cached.with_suffix(".lock")):
                if cached.exists() and _is(cached, part):
                    return cached
                with written_whole(cached) as partial:
                    download(source, partial)
                    if not _is(partial, part):
                        raise _damaged(self.path, part.file)
        except FileNotFoundError as error:
            raise _damaged(self.path, part.file) from error
        except UsageError:
            raise
        except OSError as error:
            raise UsageError(
                f"{cached.parent}: cannot keep a copy of {source} ({reason(error)}); make room, or "
                "set XDG_CACHE_HOME to a folder with room"
            ) from error
        return cached


class Split:
    """One split: sequences with an entry for each image, decoded when asked for, and its pixels."""

    def __init__(self, batches: Sequence[pa.RecordBatch], size: int) -> None:
        def column(name: str, decode: Callable[[Any], T]) -> Column[T]:
            return Column([batch.column(name) for batch in batches], _BATCH_ROWS, decode)

        self.image_ids: Column[str] = column("image_id", _as_it_is)
        self.studies: Column[str] = column("study", _as_it_is)
        self.views: Column[str | None] = column("view", _as_it_is)
        self.sentences: Column[list[str]] = column("sentences", _as_it_is)
        self.tags: Column[list[str]] = column("tags", _as_it_is)
        self.findings: Column[list[Finding]] = column(
            "findings", lambda findings: [Finding(**finding) for finding in findings]
        )
        self.references: Column[str] = self.sentences.map(" ".join)
        """The full preprocessed text of each image's report."""
        self.numbers = CodedRows(batches, _BATCH_ROWS)
        """The reports and tags as numbers."""
        self._pixels = [
            rows_of(batch.column("pixels"), (size, size), np.uint8) for batch in batches
        ]

    def __len__(self) -> int:
        return len(self.image_ids)

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        """Gather the pixels of some rows out of mapped memory.

        Args:
            rows: row numbers [n], each from 0 to ``len(self) - 1``.

        Returns:
            uint8 greyscale [n, size, size].

        Raises:
            IndexError: a row number is out of range.
        """
        return gather(self._pixels, _BATCH_ROWS, rows)


def _as_it_is(value: Any) -> Any:
    return value


def _write_batches(writer: pa.ipc.RecordBatchFileWriter, table: pa.Table) -> None:
    # Chunks are joined first, because a table's batches never span two chunks.
    for batch in table.combine_chunks().to_batches(max_chunksize=_BATCH_ROWS):
        writer.write_batch(batch)


def _is(file: Path, part: Part) -> bool:
    """Whether a local file holds what the dataset says of a part; read once in a process."""
    known = stamp(file)
    if known not in _digests:
        with file.open("rb") as content:
            _digests[known] = hashlib.file_digest(content, "sha256").hexdigest()
    return _digests[known] == part.sha256


def _damaged(path: str, file: str) -> UsageError:
    return UsageError(
        f"{path}: {file} is missing or damaged: prepare the dataset again, or copy it again"
    )
