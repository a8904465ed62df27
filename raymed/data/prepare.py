"""Writing a prepared dataset: from what a source yields to Parquet parts per split."""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from raymed.data import split, statistics
from raymed.data.examples import Example, Rejected
from raymed.data.images import ImageError, read_image
from raymed.data.schema import (
    INFO_FILE,
    REJECTED,
    REJECTED_FILE,
    SCHEMA_VERSION,
    TAGS_FILE,
    WORDS_FILE,
    DatasetInfo,
    Part,
    part_schema,
)
from raymed.data.text import sentences, tag_name
from raymed.data.views import view_fault
from raymed.errors import UsageError

PART_ROWS = 1024
_DECODERS = min(8, os.cpu_count() or 1)
_AHEAD = 4 * _DECODERS


@dataclass(frozen=True)
class _Row:
    """A row without its pixels, which lie at the same index in the scratch file."""

    image_id: str
    study: str
    view: str | None
    sentences: list[str]
    tags: list[str]
    findings: list[dict[str, Any]]
    given_split: str | None


def prepare(
    examples: Iterable[Example | Rejected],
    out: str | Path,
    *,
    source: str,
    image_size: int = 224,
    protocol: str = "study",
    seed: int = 0,
    views: str = "all",
    split_file: Path | None = None,
    overwrite: bool = False,
    total: int | None = None,
    console: Console | None = None,
) -> DatasetInfo:
    """Write the prepared dataset of a source to the folder ``out`` and say what is in it.

    The dataset is written to a temporary folder beside ``out`` and renamed once it is whole. An
    image or report that cannot be used is left out and listed with its reason in
    ``rejected.parquet``. Pixels are held on disk; text is held in memory.

    Args:
        examples: what a source yields.
        source: the source's name, e.g. ``iu-xray``.
        image_size: side of the square images, in pixels.
        protocol: split protocol: ``study``, ``paper``, ``given`` or ``r2gen``.
        seed: seed of the random protocols.
        views: ``frontal`` or ``lateral`` leaves out the images of any other view; ``all``.
        split_file: the split file of protocol ``r2gen``.
        overwrite: replace ``out`` if it is a prepared dataset.
        total: how many examples there are, if known, for the progress bar.
        console: where to print; the progress bar is shown on a terminal only.

    Raises:
        UsageError: ``out`` is in the way, nothing can be used, a split is empty, there are
            fewer than two tags, the disk is full, or the source raised it. If the source had
            yielded examples, their statistics are printed first.
    """
    console = console or Console()
    out = Path(out)
    if image_size < 1:
        raise UsageError(f"image_size is {image_size}; it must be at least 1 pixel")
    if protocol not in split.PROTOCOLS:
        raise UsageError(f"split protocol {protocol!r} is none of {', '.join(split.PROTOCOLS)}")
    if (protocol == "r2gen") != (split_file is not None):
        raise UsageError(
            f"split protocol `{protocol}` "
            + ("needs a split file" if protocol == "r2gen" else "takes no split file")
            + ": R2Gen's annotation.json, or a JSON object with the lists train, val and test"
        )
    listed = split.read_split_file(split_file) if split_file else {}
    _check_out(out, overwrite)
    partial = out.absolute().with_name(f".{out.absolute().name}.{uuid.uuid4().hex}.partial")
    try:
        partial.mkdir(parents=True)
        writer = _Writer(partial, image_size, views)
        try:
            writer.collect(examples, total, console)
            splits = _assign(writer.rows, protocol, seed, listed)
            info = writer.write(splits, source=source, protocol=protocol, seed=seed)
        except UsageError:
            # The text can be whole where the images are not; then its statistics are an answer.
            found = writer.found.statistics()
            if found.images:
                console.print(statistics.table({"found": found}, source))
            raise
        _replace(partial, out)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UsageError(
                f"{out.absolute().parent}: no space left on the disk while preparing; nothing was "
                "kept. Free some space, or choose another folder"
            ) from error
        if isinstance(error, PermissionError | NotADirectoryError | FileExistsError):
            raise UsageError(f"{out}: cannot write there: {error.strerror}") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    prepared = {name for row in writer.rows for name in (row.image_id, row.study)}
    _summarise(info, out, split.coverage(listed, writer.names, prepared), console)
    return info


def _check_out(out: Path, overwrite: bool) -> None:
    if (out / INFO_FILE).is_file():
        if not overwrite:
            raise UsageError(
                f"{out}: a prepared dataset is already there: choose another folder, or ask for "
                "it to be overwritten"
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(
            f"{out}: exists, is not empty and is no prepared dataset: choose another folder"
        )


def _replace(partial: Path, out: Path) -> None:
    """Move the whole dataset to its place; what was there is gone only afterwards."""
    if not (out / INFO_FILE).is_file():
        partial.rename(out)
        return
    old = partial.with_suffix(".old")
    out.rename(old)
    partial.rename(out)
    shutil.rmtree(old)


def _assign(
    rows: Sequence[_Row], protocol: str, seed: int, listed: dict[str, str]
) -> Sequence[str | None]:
    studies = [row.study for row in rows]
    image_ids = [row.image_id for row in rows]
    if protocol == "study":
        return split.by_study(studies, seed)
    if protocol == "paper":
        return split.by_image(len(rows), seed)
    if protocol == "given":
        return split.as_given(image_ids, [row.given_split for row in rows])
    return split.by_file(image_ids, studies, listed)


class _Writer:
    """Collects the rows of a dataset, their pixels in a scratch file, and writes the parts."""

    def __init__(self, folder: Path, image_size: int, views: str) -> None:
        self.folder = folder
        self.image_size = image_size
        self.views = views
        self.rows: list[_Row] = []
        self.rejected: list[Rejected] = []
        self.found = statistics.Counts()
        self.names: set[str] = set()
        """The ids of all images and studies found, usable or not."""
        self._scratch = folder / "pixels.scratch"
        # Which split a row belongs to is known only when all are read, so the pixels wait on
        # disk, and memory is bounded whatever the number of images.

    def collect(
        self, examples: Iterable[Example | Rejected], total: int | None, console: Console
    ) -> None:
        """Read, preprocess and decode what a source yields; UsageError if none can be used."""
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        with progress, self._scratch.open("wb") as scratch, ThreadPoolExecutor(_DECODERS) as pool:
            task = progress.add_task("images", total=total)
            waiting: deque[tuple[_Row, Future[np.ndarray]]] = deque()
            for example, row in self._usable(examples):
                waiting.append((row, pool.submit(read_image, example.image, self.image_size)))
                if len(waiting) == _AHEAD:
                    self._keep(*waiting.popleft(), scratch)
                progress.advance(task)
            for row, pixels in waiting:
                self._keep(row, pixels, scratch)
        if not self.rows:
            raise UsageError(
                f"no image with a report could be used; left out: {_reasons(self.rejected)}"
            )

    def _usable(self, examples: Iterable[Example | Rejected]) -> Iterator[tuple[Example, _Row]]:
        seen: set[str] = set()
        for example in examples:
            if isinstance(example, Rejected):
                self.rejected.append(example)
                continue
            if example.image_id in seen:
                self._reject(example, "image id is there twice; the first one was taken")
                continue
            seen.add(example.image_id)
            tags = [tag_name(tag) for tag in example.tags]
            text = sentences(example.report)
            self.found.add(example.study, text, tags)
            self.names |= {example.image_id, example.study}
            fault = view_fault(example.view, self.views)
            if fault:
                self._reject(example, fault)
            elif not example.report.strip():
                self._reject(example, "report is empty")
            elif not text:
                self._reject(example, "report has no sentence with a word in it")
            else:
                yield (
                    example,
                    _Row(
                        image_id=example.image_id,
                        study=example.study,
                        view=example.view,
                        sentences=text,
                        tags=list(dict.fromkeys(tags)),
                        findings=[
                            {**asdict(finding), "tag": tag_name(finding.tag)}
                            for finding in example.findings
                        ],
                        given_split=example.split,
                    ),
                )

    def _keep(self, row: _Row, pixels: "Future[np.ndarray]", scratch: Any) -> None:
        try:
            scratch.write(pixels.result().tobytes())
        except ImageError as error:
            self._reject(row, str(error))
        else:
            self.rows.append(row)

    def _reject(self, what: Example | _Row, reason: str) -> None:
        self.rejected.append(Rejected(what.image_id, what.study, reason))

    def write(
        self, splits: Sequence[str | None], *, source: str, protocol: str, seed: int
    ) -> DatasetInfo:
        """Write every file of the dataset; UsageError if it is not fit for training."""
        sides: dict[str, list[int]] = {name: [] for name in split.SPLITS}
        for index, side in enumerate(splits):
            if side is None:
                self._reject(self.rows[index], "no split is named for it")
            else:
                sides[side].append(index)
        prepared, training = statistics.Counts(), statistics.Counts()
        for side, indices in sides.items():
            for row in (self.rows[index] for index in indices):
                prepared.add(row.study, row.sentences, row.tags)
                if side == "train":
                    training.add(row.study, row.sentences, row.tags)
        self._check(sides, prepared)

        words = statistics.by_frequency(training.words)
        tags = statistics.by_frequency({tag: training.tags[tag] for tag in prepared.tags})
        content = hashlib.sha256(json.dumps([self.image_size, words, tags]).encode())
        pixels = np.memmap(self._scratch, np.uint8, "r", shape=(len(self.rows), self.image_size**2))
        parts = {side: self._write_parts(side, sides[side], pixels, content) for side in sides}
        del pixels
        self._scratch.unlink()
        (self.folder / WORDS_FILE).write_text(_json(words), encoding="utf-8")
        (self.folder / TAGS_FILE).write_text(_json(tags), encoding="utf-8")
        pq.write_table(
            pa.Table.from_pylist([asdict(row) for row in self.rejected], REJECTED),
            self.folder / REJECTED_FILE,
        )
        info = DatasetInfo(
            schema=SCHEMA_VERSION,
            source=source,
            protocol=protocol,
            seed=seed,
            image_size=self.image_size,
            counts={side: len(indices) for side, indices in sides.items()},
            leaked=split.leakage([row.study for row in self.rows], splits).images,
            rejected=dict(
                Counter(row.reason.partition(":")[0] for row in self.rejected).most_common()
            ),
            found=self.found.statistics(),
            prepared=prepared.statistics(),
            parts=parts,
            content_hash=content.hexdigest(),
            views=self.views,
        )
        # Last of all: a folder without it is no prepared dataset.
        (self.folder / INFO_FILE).write_text(info.to_json(), encoding="utf-8")
        return info

    def _check(self, sides: dict[str, list[int]], prepared: statistics.Counts) -> None:
        empty = [side for side, indices in sides.items() if not indices]
        if empty:
            counts = ", ".join(f"{side} {len(indices)}" for side, indices in sides.items())
            raise UsageError(
                f"split {' and '.join(empty)} would be empty ({counts}); left out: "
                f"{_reasons(self.rejected)}. Every split needs at least one image with a report"
            )
        if len(prepared.tags) < 2:
            names = ", ".join(repr(tag) for tag in prepared.tags) or "none"
            raise UsageError(
                f"there must be at least 2 different tags, and the images have {names}: a "
                "classifier with one output learns nothing. Name a column with tags that differ "
                "between images, or leave the tags out to take the reports' frequent words"
            )

    def _write_parts(
        self, side: str, indices: list[int], pixels: np.ndarray, content: Any
    ) -> list[Part]:
        schema = part_schema(self.image_size)
        parts = []
        content.update(f"{side} {len(indices)}".encode())
        for number, start in enumerate(range(0, len(indices), PART_ROWS)):
            rows = []
            for index in indices[start : start + PART_ROWS]:
                row = asdict(self.rows[index])
                del row["given_split"]
                content.update(json.dumps(row).encode())
                row["pixels"] = pixels[index].tobytes()
                content.update(row["pixels"])
                rows.append(row)
            part = Part(f"{side}-{number:05}.parquet", len(rows))
            pq.write_table(
                pa.Table.from_pylist(rows, schema),
                self.folder / part.file,
                compression="zstd",
                use_dictionary=False,
                write_page_checksum=True,
            )
            parts.append(part)
        return parts


def _json(counts: dict[str, int]) -> str:
    return json.dumps(counts, indent=0, ensure_ascii=False) + "\n"


def _reasons(rejected: Iterable[Rejected]) -> str:
    counts = Counter(row.reason.partition(":")[0] for row in rejected).most_common()
    return ", ".join(f"{count} ({reason})" for reason, count in counts) or "nothing"


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _summarise(info: DatasetInfo, out: Path, coverage: str, console: Console) -> None:
    console.print(statistics.table({"found": info.found, "prepared": info.prepared}, info.source))
    counts = ", ".join(f"{side} {count:,}" for side, count in info.counts.items())
    _say(console, f"Images per split (protocol {info.protocol}, seed {info.seed}): {counts}")
    if coverage:
        _say(console, f"Listed in the split file: {coverage}")
    if info.leaked or info.protocol == "paper":
        test = info.counts["test"]
        _say(
            console,
            f"Leakage: {info.leaked:,} of {test:,} test images ({info.leaked / test:.0%}) have "
            "another image of their study in training, with the same report; scores on this "
            "test split are flattered.",
        )
    for reason, count in info.rejected.items():
        _say(console, f"Left out: {count:,} ({reason}); listed in {out / REJECTED_FILE}")
    _say(console, f"Prepared dataset: {out}")
