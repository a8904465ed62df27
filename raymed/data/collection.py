"""Collecting what a source contains: usable rows, rejected examples and text statistics."""

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict

import numpy as np

from raymed.data import cells
from raymed.data.examples import Example, ImageInput, Rejected, rejection_summary
from raymed.data.spool import SpooledRows
from raymed.data.statistics import Counts, LeftOutCounts
from raymed.data.text import Text, preprocess, tag_name
from raymed.data.views import view_fault
from raymed.errors import UsageError
from raymed.storage import AnyPath


class Collection:
    """The examples of a source. Neither pixels nor texts are held in memory, only ids.

    Args:
        folder: Folder for temporary files, if it is a local one.
        views: The views to keep: ``frontal``, ``lateral`` or ``all``.
        keep_ids: Whether to remember the ids of all examples in `ids`.
        tokenise: Turns a report into sentences.

    Attributes:
        rows: A row for each example with a usable report.
        usable: Numbers of the rows whose image was decoded, ascending.
        found: Statistics of all examples, whether or not they are usable.
        left_out: What preprocessing leaves out of their reports.
        ids: Ids of the images and studies of all examples, with ``keep_ids``.
    """

    def __init__(
        self,
        folder: AnyPath,
        views: str,
        keep_ids: bool,
        tokenise: Callable[[str], Text] = preprocess,
    ) -> None:
        self.rows = SpooledRows(folder)
        self.usable: Sequence[int] = ()
        self.found = Counts()
        self.left_out = LeftOutCounts()
        self.ids: set[str] = set()
        self._views = views
        self._keep_ids = keep_ids
        self._tokenise = tokenise
        self._record = ""
        self._records = array("Q")
        """The number of each row's record; the images of a record share its report."""
        self._seen: set[str] = set()
        self._orders: list[int] = []
        """Position of each row among all examples, so that rejections stay in source order."""
        self._rejected: list[tuple[int, Rejected]] = []

    @property
    def rejected(self) -> list[Rejected]:
        """The rejected examples, in the order of the source."""
        return [rejected for _, rejected in sorted(self._rejected, key=lambda pair: pair[0])]

    def rejections(self) -> str:
        """Return the reasons for rejections in one line."""
        return "; ".join(rejection_summary(self.rejected)) or "nothing"

    def add(self, examples: Iterable[Example | Rejected]) -> Iterator[ImageInput]:
        """Add a row for each example with a usable report, and yield its image."""
        for order, example in enumerate(examples):
            if isinstance(example, Rejected):
                self._rejected.append((order, example))
                continue
            if self._keep_ids:
                self.ids |= {example.image_id, example.study}
            if example.image_id in self._seen:
                self._reject_example(order, example, "duplicate image id; the first one is used")
                continue
            self._seen.add(example.image_id)
            text = self._tokenise(example.report)
            tags = [tag_name(tag) for tag in example.tags]
            self.found.add(example.study, text.sentences, tags)
            self.left_out.add(text)
            if fault := view_fault(example.view, self._views) or _report_fault(example, text):
                self._reject_example(order, example, fault)
                continue
            self._orders.append(order)
            self._add_row(example, text, tags)
            yield example.image

    def _add_row(self, example: Example, text: Text, tags: Sequence[str]) -> None:
        record = example.record or example.study
        last = self._records[-1] if self._records else 0
        self._records.append(last + (record != self._record))
        self._record = record
        findings = [
            {**asdict(finding), "tag": tag_name(finding.tag)} for finding in example.findings
        ]
        self.rows.add(
            {
                "image_id": example.image_id,
                "study": example.study,
                "view": example.view,
                "sentences": text.sentences,
                "tags": list(dict.fromkeys(tags)),
                "findings": findings,
            },
            example.split,
        )

    def _reject_example(self, order: int, example: Example, reason: str) -> None:
        self._rejected.append((order, Rejected(example.image_id, example.study, reason)))

    def reject_row(self, row: int, reason: str) -> None:
        """Record why a row is not part of the dataset."""
        self._rejected.append((self._orders[row], Rejected(*self.rows.ids(row), reason)))

    def one_per_record(self, rows: Iterable[int]) -> Iterator[int]:
        """Yield the first row of each record among ascending row numbers."""
        last = 0
        for row in rows:
            if self._records[row] != last:
                last = self._records[row]
                yield row

    def finish(self, failed: Mapping[int, str]) -> None:
        """Set `usable` once all images have been decoded.

        Args:
            failed: Row number -> reason, for images that could not be decoded.

        Raises:
            UsageError: No row is usable.
        """
        for row, reason in failed.items():
            self.reject_row(row, reason)
        self.usable = np.setdiff1d(np.arange(len(self.rows)), list(failed)).tolist()
        if not self.usable:
            raise UsageError(f"no usable image with a report; left out: {self.rejections()}")

    def close(self) -> None:
        """Delete the temporary file of the rows."""
        self.rows.close()


def _report_fault(example: Example, text: Text) -> str | None:
    if not cells.text(example.report):
        return "report is missing"
    return None if text.sentences else "report has no sentence with a word in it"
