"""The scores of one split: the model's, the baselines', and what a reader should know of them."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from raymed.metrics.scoring import Scores
from raymed.metrics.table import METRICS, scored_metrics
from raymed.provenance import Record
from raymed.training.trained_on import Overlap
from raymed.training.validation import why_cider_is_zero


@dataclass(frozen=True)
class Evaluation:
    """Scores of the model and of the baselines on one split.

    Attributes:
        rows: The scores by name: the checkpoint's system, then the baselines.
        truth_normality: The normality share of the references.
        truth_distinct: The number of distinct references.
        unavailable: The metrics that could not be computed, by key, with the reason.
        trained_on: How many of the images the run was trained on; None if that is not known.
        made_from: What the scores were made from, as recorded by `raymed.provenance`.
    """

    split: str
    images: int
    rows: dict[str, Scores]
    truth_normality: float
    truth_distinct: int
    unavailable: Mapping[str, str]
    trained_on: Overlap | None
    made_from: Record

    def as_json(self) -> dict[str, Any]:
        """The content of scores.json."""
        content = asdict(self)
        unavailable = content.pop("unavailable")
        reasons = {f"{key}_missing": reason for key, reason in unavailable.items()}
        return _without_nan({**content, "meteor_missing": None, **reasons})

    def table(self) -> Table:
        """The scores for the terminal, a metric to a line, beside the ground truth's own."""
        table = Table(
            title=f"{self.split} split, {self.images} images",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        for head in ("", *self.rows, "ground truth"):
            table.add_column(head, justify="right" if head else "left", no_wrap=True)
        truth = {"normality": self.truth_normality, "distinct": self.truth_distinct}
        for metric in scored_metrics():
            values = [metric.format(row[metric.key]) for row in self.rows.values()]
            of_truth = metric.format(truth[metric.key]) if metric.key in truth else ""
            table.add_row(metric.label, *values, of_truth)
        return table

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
        if self.truth_distinct == 1 and any(row["cider"] is not None for row in self.rows.values()):
            notes.append(f"{why_cider_is_zero(self.images, self.split)}.")
        for key, reason in self.unavailable.items():
            notes.append(f"{METRICS[key].label} is missing: {reason}")
        return notes


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: what could not be measured is null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
