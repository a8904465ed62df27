"""The scores of one split: the system's, the baselines', and what a reader should know of them."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from raymed.errors import UsageError
from raymed.metrics.resampling import LEVEL, Interval
from raymed.metrics.scoring import Scores
from raymed.metrics.table import METRICS, Metric, scored_metrics
from raymed.provenance import Record
from raymed.storage import AnyPath, atomic_write_text, reason
from raymed.training.trained_on import Overlap
from raymed.training.validation import why_cider_is_zero

if TYPE_CHECKING:
    import pandas

TRUTH = "truth"
"""The name of the references' own scores, where these are measured."""


@dataclass(frozen=True)
class ReportScores:
    """Scores of reports, and of the baselines if there are any, against the same references.

    Attributes:
        split: The name of what was scored: a split, or a file.
        images: The number of images.
        studies: The number of studies.
        rows: The scores by name: the system, then the baselines.
        intervals: Bootstrap intervals over studies, by the same names and by metric.
        truth_normality: The normality share of the references; None if it is not known where their
            sentences end.
        truth_distinct: The number of distinct references.
        unavailable: The metrics that could not be computed, by key, with the reason.
        made_from: What the scores were made from, as recorded by `raymed.provenance`.
    """

    split: str
    images: int
    studies: int
    rows: dict[str, Scores]
    intervals: dict[str, dict[str, Interval]]
    truth_normality: float | None
    truth_distinct: int
    unavailable: Mapping[str, str]
    made_from: Record

    @property
    def title(self) -> str:
        """What was scored, for people."""
        return self.split

    def as_json(self) -> dict[str, Any]:
        """The content of scores.json."""
        content = asdict(self)
        unavailable = content.pop("unavailable")
        reasons = {f"{key}_missing": reason for key, reason in unavailable.items()}
        return without_nan({**content, "meteor_missing": None, **reasons})

    def write(self, file: AnyPath) -> None:
        """Write scores.json.

        Raises:
            UsageError: It cannot be written.
        """
        try:
            atomic_write_text(file, json.dumps(self.as_json(), indent=1))
        except OSError as error:
            raise UsageError(f"{file}: cannot be written ({reason(error)})") from error

    def dataframe(self) -> "pandas.DataFrame":
        """The scores as pandas has them, a row for each system or baseline and metric.

        The columns are ``system``, ``metric``, ``score``, and ``low`` and ``high``: the ends of the
        bootstrap interval, NaN where there is none.
        """
        import pandas

        metrics = [metric.key for metric in filter(self._is_shown, scored_metrics())]
        rows = [
            (name, key, scores[key], *self.intervals[name].get(key, (None, None)))
            for name, scores in self.rows.items()
            for key in metrics
        ]
        rows += [(TRUTH, key, value, None, None) for key, value in self._truth.items()]
        frame = pandas.DataFrame(rows, columns=["system", "metric", "score", "low", "high"])
        return frame.astype(dict.fromkeys(("score", "low", "high"), float))

    def table(self) -> Table:
        """The scores for the terminal, a metric to a line, beside the ground truth's own."""
        table = Table(
            title=f"{self.title}, {self.images:,} images of {self.studies:,} studies",
            caption=f"below the scores: {LEVEL} % bootstrap intervals over studies",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        for head in ("", *self.rows, TRUTH):
            # Four columns of intervals fit a terminal of 80 characters, their heads in lines.
            lines = head.replace(" ", "\n")
            table.add_column(lines, justify="right" if head else "left", no_wrap=True)
        truth = self._truth
        for metric in filter(self._is_shown, scored_metrics()):
            values = [self._cell(metric, name) for name in self.rows]
            of_truth = metric.format(truth[metric.key]) if metric.key in truth else ""
            table.add_row(metric.label, *values, of_truth)
        return table

    @property
    def _truth(self) -> dict[str, float | None]:
        """What is measured of the references themselves."""
        return {"normality": self.truth_normality, "distinct": self.truth_distinct}

    def _is_shown(self, metric: Metric) -> bool:
        measured = any(row[metric.key] is not None for row in self.rows.values())
        return measured or metric.key in self.unavailable

    def _cell(self, metric: Metric, name: str) -> str:
        value = metric.format(self.rows[name][metric.key])
        bounds = self.intervals[name].get(metric.key)
        return value if bounds is None else f"{value}\n{'-'.join(map(metric.format, bounds))}"

    def notes(self) -> list[str]:
        """What a reader of the scores should know, a line each, the most serious first."""
        notes = []
        if self.truth_distinct == 1 and any(row["cider"] is not None for row in self.rows.values()):
            notes.append(f"{why_cider_is_zero(self.images, self.split)}.")
        for key, why in self.unavailable.items():
            notes.append(f"{METRICS[key].label} is missing: {why}")
        return notes


@dataclass(frozen=True)
class Evaluation(ReportScores):
    """Scores of a checkpoint and of the baselines on one split.

    Attributes:
        trained_on: How many of the images the run was trained on; None if that is not known.
    """

    trained_on: Overlap | None

    @property
    def title(self) -> str:
        """What was scored, for people."""
        return f"{self.split} split"

    def notes(self) -> list[str]:
        """What a reader of the scores should know, a line each, the most serious first."""
        notes, found = [], self.trained_on
        trained, scored = self.made_from["checkpoint"]["trained_on"], self.made_from["data"]
        if found is None:
            notes.append(
                "How many of these images the run was trained on is not known: its checkpoint, or "
                "that of a run it started from, was written by a version that did not record it."
            )
        elif found.images and self.split != "train":
            notes.append(
                f"WARNING: the run was trained on {found.images:,} of these {self.images:,} images "
                f"({found.by_id:,} by id, {found.by_pixels:,} by pixels): these scores do not show "
                "how it performs on unseen images."
            )
        else:
            notes.append(
                f"The run was trained on {found.images:,} of these {self.images:,} images."
            )
        if trained != scored["content_hash"]:
            notes.append(
                f"{scored['path']}: its content ({scored['content_hash'][:12]}) is not that of the "
                f"dataset the run was trained on ({trained[:12]})."
            )
        return notes + super().notes()


@dataclass(frozen=True)
class ExternalScores(ReportScores):
    """Scores of anyone's reports.

    Attributes:
        left_out: What was not scored, and what is not known, a line each.
    """

    left_out: tuple[str, ...]

    def notes(self) -> list[str]:
        """What a reader of the scores should know, a line each, the most serious first."""
        return [*self.left_out, *super().notes()]


def without_nan(value: Any) -> Any:
    """JSON has no NaN: what could not be measured is null."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
