"""Writing a prepared dataset: from what a source yields to Parquet parts per split."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from raymed.data import cells, shards, split, statistics
from raymed.data.examples import Example, Rejected, left_out
from raymed.data.schema import (
    INFO_FILE,
    REJECTED,
    REJECTED_FILE,
    SCHEMA_VERSION,
    TAGS_FILE,
    WORDS_FILE,
    DatasetInfo,
    Part,
)
from raymed.data.shards import Decoded, PartWork, Shard, Spread, Written, in_process
from raymed.data.spool import Rows
from raymed.data.target import Target, new_dataset
from raymed.data.text import preprocess, tag_name
from raymed.data.views import view_fault
from raymed.errors import UsageError
from raymed.progress import Progress, tracked


def prepare(
    examples: Iterable[Example | Rejected],
    out: str | Path,
    *,
    source: str,
    image_size: int = 224,
    protocol: str = "auto",
    seed: int = 0,
    views: str = "all",
    split_file: Path | None = None,
    overwrite: bool = False,
    total: int | None = None,
    console: Console | None = None,
    spread: Spread = in_process,
) -> DatasetInfo:
    """Write the prepared dataset of a source to the folder ``out`` and say what is in it.

    A half-written dataset is never taken for whole (see `raymed.data.target`). An image or report
    that cannot be used is left out and listed with its reason in ``rejected.parquet``. Neither
    pixels nor texts are held in memory, only the names of images and studies. The dataset is the
    same however the work is spread.

    Args:
        examples: what a source yields.
        out: a folder, or a URI that pyarrow knows (``s3://``, ``gs://``).
        source: the source's name, e.g. ``iu-xray``.
        image_size: side of the square images, in pixels.
        protocol: split protocol: ``study``, ``paper``, ``given`` or ``r2gen``; ``auto`` is
            ``r2gen`` with a split file, else ``given`` where the source names splits, or ``study``.
        seed: seed of the random protocols.
        views: ``frontal`` or ``lateral`` leaves out the images of any other view; ``all``.
        split_file: the split file of protocol ``r2gen``.
        overwrite: replace ``out`` if it is a prepared dataset.
        total: how many examples there are, if known, for the progress bar.
        console: where to print; the progress bar is shown on a terminal only.
        spread: how images are decoded and parts are written: in this process, or on a cluster.

    Raises:
        UsageError: ``out`` is in the way, nothing can be used, a split is empty, there are
            fewer than two tags, the disk is full, or the source raised it. If the source had
            yielded examples, their statistics are printed first.
    """
    console = console or Console()
    if image_size < 1:
        raise UsageError(f"image_size is {image_size}; it must be at least 1 pixel")
    if protocol not in split.PROTOCOLS:
        raise UsageError(f"split protocol {protocol!r} is none of {', '.join(split.PROTOCOLS)}")
    if protocol == "auto" and split_file is not None:
        protocol = "r2gen"
    if (protocol == "r2gen") != (split_file is not None):
        raise UsageError(
            f"split protocol `{protocol}` "
            + ("needs a split file" if protocol == "r2gen" else "takes no split file")
            + ": R2Gen's annotation.json, or a JSON object with the lists train, val and test"
        )
    listed = split.read_split_file(split_file) if split_file else {}
    with new_dataset(out, overwrite) as target:
        writer = _Writer(target, image_size, views, spread, console, bool(listed))
        try:
            writer.collect(examples, total)
            protocol, splits = split.assign(protocol, *writer.usable(), seed=seed, listed=listed)
            info = writer.write(splits, source=source, protocol=protocol, seed=seed)
        except UsageError:
            # The text can be whole where the images are not; then its statistics are an answer.
            found = writer.found.statistics()
            if found.images:
                console.print(statistics.table({"found": found}, source))
                for line in writer.left_out.shares().lines():
                    _say(console, line)
            raise
        finally:
            writer.rows.close()
    prepared = {name for index in writer.good for name in writer.names_of(index)} if listed else ()
    coverage = split.coverage(listed, writer.names, prepared)
    _summarise(info, out, coverage, left_out(writer.rejected), console)
    return info


class _Writer:
    """Collects the rows of a dataset, their pixels in shards, and writes the parts."""

    def __init__(
        self,
        target: Target,
        image_size: int,
        views: str,
        spread: Spread,
        console: Console,
        keep_names: bool,
    ) -> None:
        self.image_size = image_size
        self.views = views
        self.rows = Rows(target.local)
        self.good: Sequence[int] = ()
        """The rows whose images could be decoded."""
        self.found = statistics.Counts()
        self.left_out = statistics.LeftOutCounts()
        self.names: set[str] = set()
        """The ids of all images and studies found, usable or not; with ``keep_names`` only."""
        self._keep_names = keep_names
        self._target = target
        self._spread = spread
        self._console = console
        self._orders: list[int] = []
        """Each row's place among all that the source yielded; so rejections keep its order."""
        self._rejected: list[tuple[int, Rejected]] = []

    def names_of(self, index: int) -> tuple[str, str]:
        """The ids of a row's image and study."""
        return self.rows.image_ids[index], self.rows.studies[index]

    def usable(self) -> tuple[list[str], list[str], list[str | None]]:
        """Image id, study and the source's own split of every row whose image could be decoded."""
        rows = self.rows
        return (
            [rows.image_ids[index] for index in self.good],
            [rows.studies[index] for index in self.good],
            [rows.given[index] for index in self.good],
        )

    @property
    def rejected(self) -> list[Rejected]:
        """What was left out, in the order of the source."""
        return [rejected for _, rejected in sorted(self._rejected, key=lambda one: one[0])]

    def collect(self, examples: Iterable[Example | Rejected], total: int | None) -> None:
        """Read, preprocess and decode what a source yields; UsageError if none can be used."""
        size = shards.shard_rows(self.image_size)
        failed: dict[int, str] = {}
        with Progress("reading images", total, self._console) as progress:
            for decoded in self._spread(shards.write_shard, self._shards(examples, progress)):
                self._see_missing(decoded)
                failed |= {decoded.number * size + row: reason for row, reason in decoded.failed}
                progress.advance(decoded.images)
        for index, reason in failed.items():
            self._reject(index, reason)
        self.good = np.setdiff1d(np.arange(len(self.rows)), list(failed)).tolist()
        if not self.good:
            raise UsageError(f"no image with a report could be used; left out: {self._left_out()}")

    def _shards(
        self, examples: Iterable[Example | Rejected], progress: Progress
    ) -> Iterator[Shard]:
        size = shards.shard_rows(self.image_size)
        images: list[Path | np.ndarray] = []
        numbers = count()
        scratch = self._target.scratch
        for image in self._usable(examples):
            images.append(image.absolute() if isinstance(image, Path) else image)
            if len(images) == size:
                yield Shard(next(numbers), images, self.image_size, scratch)
                images = []
        # With one row for each image to come, the bar knows how far it has to go.
        progress.update(total=len(self.rows))
        if images:
            yield Shard(next(numbers), images, self.image_size, scratch)

    def _usable(self, examples: Iterable[Example | Rejected]) -> Iterator[Path | np.ndarray]:
        """Keep the row of each example whose text can be used, and yield its image."""
        seen: set[str] = set()
        for order, example in enumerate(examples):
            if isinstance(example, Rejected):
                self._rejected.append((order, example))
                continue
            if example.image_id in seen:
                fault: str | None = "image id is there twice; the first one was taken"
            else:
                seen.add(example.image_id)
                tags = [tag_name(tag) for tag in example.tags]
                text = preprocess(example.report)
                self.found.add(example.study, text.sentences, tags)
                self.left_out.add(text)
                fault = view_fault(example.view, self.views)
                if not fault and not cells.text(example.report):
                    fault = "report is missing"
                elif not fault and not text.sentences:
                    fault = "report has no sentence with a word in it"
            if self._keep_names:
                self.names |= {example.image_id, example.study}
            if fault:
                self._rejected.append((order, Rejected(example.image_id, example.study, fault)))
                continue
            self._orders.append(order)
            self.rows.add(
                {
                    "image_id": example.image_id,
                    "study": example.study,
                    "view": example.view,
                    "sentences": text.sentences,
                    "tags": list(dict.fromkeys(tags)),
                    "findings": [
                        {**asdict(finding), "tag": tag_name(finding.tag)}
                        for finding in example.findings
                    ],
                },
                example.split,
            )
            yield example.image

    def _see_missing(self, decoded: Decoded) -> None:
        """A file that is here and not there is no bad image, but a folder that is not shared."""
        if decoded.missing is not None and decoded.missing.exists():
            raise UsageError(
                f"{decoded.missing}: is here, but a machine of the cluster does not see it: let "
                "the images lie in a folder that all machines share, or prepare with workers=0"
            )

    def _reject(self, index: int, reason: str) -> None:
        self._rejected.append((self._orders[index], Rejected(*self.names_of(index), reason)))

    def write(
        self, splits: Sequence[str | None], *, source: str, protocol: str, seed: int
    ) -> DatasetInfo:
        """Write every file of the dataset; UsageError if it is not fit for training."""
        sides: dict[str, list[int]] = {name: [] for name in split.SPLITS}
        for index, side in zip(self.good, splits, strict=True):
            if side is None:
                self._reject(index, "no split is named for it")
            else:
                sides[side].append(index)
        prepared, training = statistics.Counts(), statistics.Counts()
        for side, indices in sides.items():
            for index in tracked(indices, f"counting {side} words", len(indices), self._console):
                row = self.rows[index]
                study = self.rows.studies[index]
                prepared.add(study, row["sentences"], row["tags"])
                if side == "train":
                    training.add(study, row["sentences"], row["tags"])
        self._check(sides, prepared)

        words = statistics.by_frequency(training.words)
        tags = statistics.by_frequency({tag: training.tags[tag] for tag in prepared.tags})
        self._target.clear()
        parts, rows_hash = self._write_parts(sides)
        content = hashlib.sha256(json.dumps([self.image_size, words, tags]).encode() + rows_hash)
        final = self._target.final
        final.write(WORDS_FILE, _json(words))
        final.write(TAGS_FILE, _json(tags))
        rejected = self.rejected
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist([asdict(row) for row in rejected], REJECTED), sink)
        final.write(REJECTED_FILE, sink.getvalue())
        info = DatasetInfo(
            schema=SCHEMA_VERSION,
            source=source,
            protocol=protocol,
            seed=seed,
            image_size=self.image_size,
            counts={side: len(indices) for side, indices in sides.items()},
            leaked=split.leakage([self.rows.studies[i] for i in self.good], splits).images,
            rejected=dict(Counter(row.kind for row in rejected).most_common()),
            found=self.found.statistics(),
            prepared=prepared.statistics(),
            parts=parts,
            content_hash=content.hexdigest(),
            views=self.views,
            left_out=self.left_out.shares(),
        )
        # Last of all: a folder without it is no prepared dataset.
        final.write(INFO_FILE, info.to_json().encode())
        return info

    def _check(self, sides: dict[str, list[int]], prepared: statistics.Counts) -> None:
        empty = [side for side, indices in sides.items() if not indices]
        if empty:
            counts = ", ".join(f"{side} {len(indices)}" for side, indices in sides.items())
            raise UsageError(
                f"split {' and '.join(empty)} would be empty ({counts}); left out: "
                f"{self._left_out()}. Every split needs at least one image with a report; "
                "split=study draws all three anew"
            )
        if len(prepared.tags) < 2:
            names = ", ".join(repr(tag) for tag in prepared.tags) or "none"
            raise UsageError(
                f"there must be at least 2 different tags, and the images have {names}: a "
                "classifier with one output learns nothing. Name a column with tags that differ "
                "between images, or leave the tags out to take the reports' frequent words"
            )

    def _left_out(self) -> str:
        return "; ".join(left_out(self.rejected)) or "nothing"

    def _write_parts(self, sides: dict[str, list[int]]) -> tuple[dict[str, list[Part]], bytes]:
        """Write the parts; also the SHA-256 of all rows, which no way of dividing them changes."""
        written: dict[str, Written] = {}
        with Progress("writing images", sum(map(len, sides.values())), self._console) as progress:
            for one in self._spread(shards.write_part, self._parts(sides)):
                written[one.part.file] = one
                progress.advance(one.part.rows)
        parts: dict[str, list[Part]] = {side: [] for side in sides}
        content = hashlib.sha256()
        # Names are so padded that their order is that of the rows.
        for side, indices in sides.items():
            content.update(f"{side} {len(indices)}".encode())
            for file in sorted(file for file in written if file.startswith(f"{side}-")):
                parts[side].append(written[file].part)
                content.update(written[file].digests)
        return parts, content.digest()

    def _parts(self, sides: dict[str, list[int]]) -> Iterator[PartWork]:
        size = shards.part_rows(self.image_size)
        for side, indices in sides.items():
            for number, start in enumerate(range(0, len(indices), size)):
                taken = indices[start : start + size]
                yield PartWork(
                    file=f"{side}-{number:05}.parquet",
                    rows=[self.rows.text(index) for index in taken],
                    images=np.array(taken, np.int64),
                    size=self.image_size,
                    shards=self._target.scratch,
                    final=self._target.final,
                )


def _json(counts: dict[str, int]) -> bytes:
    return (json.dumps(counts, indent=0, ensure_ascii=False) + "\n").encode()


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _summarise(
    info: DatasetInfo, out: str | Path, coverage: str, reasons: Sequence[str], console: Console
) -> None:
    console.print(statistics.table({"found": info.found, "prepared": info.prepared}, info.source))
    for line in info.left_out.lines() if info.left_out else ():
        _say(console, line)
    counts = ", ".join(f"{side} {count:,}" for side, count in info.counts.items())
    drawn = "as the source names them" if info.protocol == "given" else f"seed {info.seed}"
    _say(console, f"Images per split (protocol {info.protocol}, {drawn}): {counts}")
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
    for reason in reasons:
        _say(console, f"Left out: {reason}")
    if reasons:
        _say(console, f"All that was left out: {out}/{REJECTED_FILE}")
    _say(console, f"Prepared dataset: {out}")
