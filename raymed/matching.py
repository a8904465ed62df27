"""Matching reports with references by their ids."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raymed.errors import UsageError
from raymed.metrics.resampling import study_numbers
from raymed.metrics.scoring import Predictions
from raymed.predictions_file import Stream
from raymed.report_sets import ReportSet, chained

EXAMPLES = 3
"""How many ids are named of those that do not match."""


@dataclass(frozen=True)
class Matched:
    """Predictions beside their references.

    Attributes:
        predictions: The predictions.
        references: The references.
        rows: The rows of the references that are scored, ascending, int64 [n].
        predicted: The row of each one's prediction, int64 [n].
        left_out: What was left out, a line each.
    """

    predictions: ReportSet
    references: ReportSet
    rows: np.ndarray
    predicted: np.ndarray
    left_out: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def truth(self, column: Sequence[Any]) -> Stream[Any]:
        """The entries of a column of the references, in the order of `rows`."""
        return Stream(len(self), lambda: (column[row] for row in map(int, self.rows)))

    def written(self, column: Sequence[Any]) -> Stream[Any]:
        """The entries of a column of the predictions, in the order of `rows`."""
        return Stream(len(self), lambda: (column[row] for row in map(int, self.predicted)))

    @property
    def studies(self) -> Stream[str]:
        """The study of each reference."""
        return self.truth(self.references.studies)

    @property
    def sentences_are_known(self) -> bool:
        """Whether it is known where the predictions' sentences end.

        One-sentence reports that are scored against one-sentence references need no full stops.
        """
        return self.predictions.has_sentences or not self.references.has_sentences

    @property
    def true_sentences_are_known(self) -> bool:
        """The same of the references."""
        return self.references.has_sentences or not self.predictions.has_sentences

    def columns(self) -> dict[str, Stream[Any]]:
        """The columns of a file of predictions; see `raymed.predictions_file`."""
        truth, own = self.references, self.predictions
        sentences, written = self.truth(truth.sentences), self.written(own.sentences)
        columns = {
            "image_id": self.truth(truth.ids),
            "study": self.studies,
            "reference": sentences.map(chained),
            "report": written.map(chained),
        }
        if self.true_sentences_are_known:
            columns["reference_sentences"] = sentences
        if self.sentences_are_known:
            columns["sentences"] = written
        if truth.tags is not None:
            columns["tags"] = self.truth(truth.tags)
            if own.tags is not None:
                columns["predicted_tags"] = self.written(own.tags)
        if truth.findings is not None:
            columns["findings"] = self.truth(truth.findings)
        return columns

    def to_score(self, lexicon: Iterable[str]) -> Predictions:
        """The predictions as the metrics take them."""
        columns = self.columns()
        return Predictions(
            references=columns["reference"],
            reports=columns["report"],
            sentences=columns.get("sentences"),
            tags=columns.get("tags") or self.studies.map(lambda _: []),
            predicted_tags=columns.get("predicted_tags"),
            lexicon=lexicon,
            findings=columns.get("findings"),
        )


def match(predictions: ReportSet, references: ReportSet, where: tuple[str, str]) -> Matched:
    """Match predictions with references.

    Ids are compared with those of the references; if none matches, with those of their studies, of
    which the first image's report is the reference.

    Args:
        predictions: The predictions.
        references: The references.
        where: The files of both, for messages.

    Raises:
        UsageError: Nothing matches, no reference that does has words, or two text files differ in
            their number of lines.
    """
    if all(each.endswith(".txt") for each in where) and len(predictions) != len(references):
        raise UsageError(
            f"{where[0]}: has {len(predictions):,} lines, but {where[1]} has {len(references):,}; "
            "text files are matched line by line"
        )
    own = predictions.numbers()
    order = np.argsort(own)
    for numbers in (
        references.numbers(),
        study_numbers(references.studies, len(references)),
    ):
        distinct, first = np.unique(numbers, return_index=True)
        place = np.minimum(np.searchsorted(own, distinct, sorter=order), len(own) - 1)
        found = own[order[place]] == distinct
        if found.any():
            break
    else:
        raise UsageError(
            f"{where[0]}: no id is in {where[1]}: predictions have {_examples(predictions.ids)}; "
            f"references have {_examples(references.ids)}"
        )
    ascending = np.argsort(first[found])
    rows, predicted = first[found][ascending], order[place[found]][ascending]
    has_words = np.array([bool(chained(references.sentences[row])) for row in map(int, rows)])
    if not has_words.any():
        raise UsageError(f"{where[1]}: no reference that matches has a word")
    unscored = np.sort(first[~found])
    unwanted = np.setdiff1d(np.arange(len(own)), predicted)
    notes = (
        ("References without a prediction", unscored, references.ids, len(first)),
        ("Predictions without a reference", unwanted, predictions.ids, len(own)),
        ("References without words", rows[~has_words], references.ids, len(first)),
    )
    left_out = tuple(
        f"{what}, not scored: {len(which):,} of {total:,} ({_examples(ids, which)})"
        for what, which, ids, total in notes
        if len(which)
    )
    return Matched(predictions, references, rows[has_words], predicted[has_words], left_out)


def in_both(one: Matched, other: Matched) -> Iterator[Matched]:
    """Two systems' predictions restricted to the references that both have.

    Raises:
        UsageError: There is none.
    """
    rows, *kept = np.intersect1d(one.rows, other.rows, assume_unique=True, return_indices=True)
    if not len(rows):
        raise UsageError("compare: no reference has a prediction in both files")
    for each, places in zip((one, other), kept, strict=True):
        yield Matched(
            each.predictions, each.references, rows, each.predicted[places], each.left_out
        )


def _examples(ids: Sequence[str], rows: np.ndarray | None = None) -> str:
    chosen = range(min(EXAMPLES, len(ids))) if rows is None else map(int, rows[:EXAMPLES])
    more = (len(ids) if rows is None else len(rows)) > EXAMPLES
    return ", ".join([ids[row] for row in chosen]) + (", ..." if more else "")
