"""Opening a prepared dataset for training: text in memory, pixels mapped from a local cache."""

import fcntl
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymed.cache import cache_folder
from raymed.data.examples import Finding
from raymed.data.mapped import gather, map_batches, rows_of
from raymed.data.schema import (
    INFO_FILE,
    SCHEMA_VERSION,
    TAGS_FILE,
    WORDS_FILE,
    DatasetInfo,
    Part,
)
from raymed.errors import UsageError
from raymed.storage import download, place, reason, stamp, written_whole

_digests: dict[tuple[str, int, int], str] = {}
"""Hashes of local copies of parts, by what tells one file from another."""
_BATCH_ROWS = 256
"""Rows of every record batch of the pixel cache but the last, so a row is found by arithmetic."""


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

        Its pixels are put into the local cache if they are not there yet.

        Raises:
            UsageError: there is no such split, or a part of it is missing or damaged.
        """
        if name not in self.info.parts:
            raise UsageError(f"{self.path}: no split {name!r}; it has {', '.join(self.info.parts)}")
        tables = [self._read_part(part, Split.COLUMNS) for part in self.info.parts[name]]
        for part, table in zip(self.info.parts[name], tables, strict=True):
            if table.num_rows != part.rows:
                raise _damaged(self.path, part.file)
        return Split(pa.concat_tables(tables), self._pixels(name))

    def _read_part(self, part: Part, columns: Sequence[str]) -> pa.Table:
        file = self._local(part)
        try:
            return pq.read_table(
                file, columns=list(columns), page_checksum_verification=True, partitioning=None
            )
        except (OSError, pa.ArrowException) as error:
            raise _damaged(self.path, part.file) from error

    def _local(self, part: Part) -> Path:
        """A part as a local file: of a data set at a URI, one in this node's cache.

        One process of a node fetches it, and the others wait for it and use it too. Whoever opens
        it first sees that it holds what the data set says it does.
        """
        source = place(self.path) / part.file
        if isinstance(source, Path):
            return source
        cached = cache_folder(self.info.content_hash, "parts") / part.file
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            with cached.with_suffix(".lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
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

    def _pixels(self, name: str) -> list[np.ndarray]:
        """Return uint8 views [rows, size, size] of the record batches of the pixel cache."""
        cached = cache_folder(self.info.content_hash) / f"{name}.arrow"
        rows, size = self.info.counts[name], self.info.image_size
        schema = pa.schema([("pixels", pa.binary(size * size))])
        lengths = [min(_BATCH_ROWS, rows - start) for start in range(0, rows, _BATCH_ROWS)]
        batches = map_batches(cached, schema, lengths)
        if batches is None:
            try:
                self._fill_cache(name, cached, schema)
            except OSError as error:
                raise UsageError(
                    f"{cached.parent}: cannot write the pixel cache ({reason(error)}); "
                    f"it needs {rows * size * size / 2**20:,.0f} MiB. Make room, or set "
                    "XDG_CACHE_HOME to a folder with room"
                ) from error
            batches = map_batches(cached, schema, lengths)
            assert batches is not None
        return [rows_of(batch.column("pixels"), (size, size), np.uint8) for batch in batches]

    def _fill_cache(self, name: str, cached: Path, schema: pa.Schema) -> None:
        with written_whole(cached) as partial, pa.ipc.new_file(str(partial), schema) as writer:
            waiting = schema.empty_table()
            for part in self.info.parts[name]:
                read = self._read_part(part, ["pixels"]).cast(schema)
                waiting = pa.concat_tables([waiting, read])
                whole = waiting.num_rows // _BATCH_ROWS * _BATCH_ROWS
                _write_batches(writer, waiting.slice(0, whole))
                waiting = waiting.slice(whole)
            _write_batches(writer, waiting)


class Split:
    """One split: texts as lists, one entry per image, and pixels on demand."""

    COLUMNS = ("image_id", "study", "view", "sentences", "tags", "findings")

    def __init__(self, table: pa.Table, pixels: list[np.ndarray]) -> None:
        self.image_ids: list[str] = table["image_id"].to_pylist()
        self.studies: list[str] = table["study"].to_pylist()
        self.views: list[str | None] = table["view"].to_pylist()
        self.sentences: list[list[str]] = table["sentences"].to_pylist()
        self.tags: list[list[str]] = table["tags"].to_pylist()
        self.findings: list[list[Finding]] = [
            [Finding(**finding) for finding in findings]
            for findings in table["findings"].to_pylist()
        ]
        self.references: list[str] = [" ".join(sentences) for sentences in self.sentences]
        """The full preprocessed text of each image's report."""
        self._pixels = pixels

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


def _write_batches(writer: pa.ipc.RecordBatchFileWriter, table: pa.Table) -> None:
    # Chunks are joined first, because a table's batches never span two chunks.
    for batch in table.combine_chunks().to_batches(max_chunksize=_BATCH_ROWS):
        writer.write_batch(batch)


def _is(file: Path, part: Part) -> bool:
    """Whether a local file holds what the data set says of a part; read once in a process."""
    known = stamp(file)
    if known not in _digests:
        with file.open("rb") as content:
            _digests[known] = hashlib.file_digest(content, "sha256").hexdigest()
    return _digests[known] == part.sha256


def _damaged(path: str, file: str) -> UsageError:
    return UsageError(
        f"{path}: {file} is missing or damaged: prepare the dataset again, or copy it again"
    )
