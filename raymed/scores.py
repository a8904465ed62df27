"""The scores of one split: the model's row and the baselines', and what is to be known of them."""

import math
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from raymed.provenance import Record
from raymed.training.trained_on import Overlap
from raymed.training.validation import why_cider_is_zero


@dataclass(frozen=True)
class Scores:
    """One row of the score table. Shares and scores are from 0 to 1, CIDEr from 0 to 10.

    A system that writes no report has tag recall only.
    """

    recall_5: float
    recall_10: float
    recall_20: float
    bleu_1: float | None = None
    bleu_2: float | None = None
    bleu_3: float | None = None
    bleu_4: float | None = None
    meteor: float | None = None
    rouge_l: float | None = None
    cider: float | None = None
    normality: float | None = None
    distinct: int | None = None


MEASURES = {
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
    "recall_5": "tag recall@5",
    "recall_10": "tag recall@10",
    "recall_20": "tag recall@20",
    "normality": "normality share",
    "distinct": "distinct reports",
}


@dataclass(frozen=True)
class Evaluation:
    """Scores of the model and of the baselines on one split.

    Attributes:
        rows: by name: the checkpoint's system, ``constant report`` and ``nearest image``.
        truth_normality: the normality share of the references.
        truth_distinct: how many references differ.
        meteor_missing: why METEOR is absent, if it is.
        trained_on: how many of the images the run was trained on; None where it is not known.
        made_from: what the scores were made from, as `raymed.provenance` records it.
    """

    split: str
    images: int
    rows: dict[str, Scores]
    truth_normality: float
    truth_distinct: int
    meteor_missing: str | None
    trained_on: Overlap | None
    made_from: Record

    def table(self) -> Table:
        """The scores for the terminal, a measure to a line, with the ground truth's own figures."""
        table = Table(
            title=f"{self.split} split, {self.images} images",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        for head in ("", *self.rows, "ground truth"):
            table.add_column(head, justify="right" if head else "left", no_wrap=True)
        for field, name in MEASURES.items():
            values = [getattr(row, field) for row in self.rows.values()]
            truth = {"normality": self.truth_normality, "distinct": self.truth_distinct}.get(field)
            table.add_row(name, *map(_shown, values), "" if truth is None else _shown(truth))
        return table

    def notes(self) -> list[str]:
        """What is to be known of the scores, a line each, the gravest first."""
        notes, found = [], self.trained_on
        trained, scored = self.made_from["checkpoint"]["trained_on"], self.made_from["data"]
        if found is None:
            notes.append(
                "How many of these images the run was trained on is not known: its checkpoint, or "
                "that of a run it started from, was written by a raymed that did not record it."
            )
        elif found.images and self.split != "train":
            notes.append(
                f"WARNING: the run was trained on {found.images:,} of these {self.images:,} images "
                f"({found.by_id:,} by id, {found.by_pixels:,} by pixels): these scores do not show "
                "what it does with images that it never saw."
            )
        else:
            notes.append(
                f"The run was trained on {found.images:,} of these {self.images:,} images."
            )
        if trained != scored["content_hash"]:
            notes.append(
                f"{scored['path']}: its content ({scored['content_hash'][:12]}) is not what the "
                f"run was trained on ({trained[:12]})."
            )
        if self.truth_distinct == 1 and any(row.cider is not None for row in self.rows.values()):
            notes.append(f"{why_cider_is_zero(self.images, self.split)}.")
        if self.meteor_missing:
            notes.append(f"METEOR is absent: {self.meteor_missing}")
        return notes


def _shown(value: float | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
