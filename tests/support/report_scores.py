"""All scores of generated reports, without tags."""

from collections.abc import Iterator

from raymed.metrics.ngrams import Texts
from raymed.metrics.scoring import Predictions, Scores, score_split
from raymed.metrics.table import scored_metrics


class _Sentences:
    """Each text as a report of one sentence."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def __iter__(self) -> Iterator[list[str]]:
        return ([text] for text in self._texts)


def report_scores(references: Texts, reports: Texts) -> tuple[Scores, dict[str, str]]:
    """The scores, and why some are missing."""
    metrics = [metric for metric in scored_metrics() if metric.of == "reports"]
    found = score_split(Predictions(references, reports, _Sentences(reports), [], []), metrics)
    return found.scores, found.unavailable
