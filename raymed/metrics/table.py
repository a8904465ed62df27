"""The table of metrics: what each is called, how it is printed, and which file computes it.

The console, the pages, TensorBoard, Parquet, the tables beside the paper's, the leaderboard and
the objectives of a sweep all read from here. A new metric of reports or tags is a file with a
function `measure` or `score` (see `raymed.metrics.scoring`) and a line in `METRICS`.

The configuration reads the names, so this module imports nothing that takes time to load.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Direction = Literal["max", "min"]


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        key: Its name in metrics.csv, scores.json, Parquet files, TensorBoard and the
            configuration.
        label: Its name for people.
        of: What it measures: generated reports, predicted tags, the findings that reports name,
            attention, or the run itself.
        module: The module that computes it over a whole split (see `raymed.metrics.scoring`);
            empty for a metric that training or `raymed.localisation` measures.
        head: Its name at the head of a narrow column; by default the label.
        digits: How many decimals are printed.
        direction: Whether the highest or the lowest value is the best.
        table: The table beside the paper's that has a column for it: ``1``, ``2``, ``3``,
            ``attention``, or none; by default that of what it measures.
        objective: Whether it is measured after every epoch, which makes it a column of the
            leaderboard and lets a sweep search for it.
        by_sentence: Whether a metric of reports needs to know where their sentences end.
    """

    key: str
    label: str
    of: Literal["reports", "tags", "findings", "attention", "run"]
    module: str = ""
    head: str = ""
    digits: int = 3
    direction: Direction = "max"
    table: str | None = None
    objective: bool = False
    by_sentence: bool = False

    @property
    def column(self) -> str:
        """The head of its column."""
        return self.head or self.label

    @property
    def of_table(self) -> str | None:
        """The table that has a column for it, if any."""
        by_kind = {"reports": "1", "tags": "3", "attention": "attention"}
        return by_kind.get(self.of) if self.table is None else self.table

    def format(self, value: float | None) -> str:
        """The value as it is printed; a dash where it could not be measured."""
        if value is None or math.isnan(value):
            return "-"
        return f"{value:.{self.digits}f}"


_CIDER = "raymed.metrics.cider"
_BLEU = "raymed.metrics.bleu"
_ROUGE = "raymed.metrics.rouge"
_METEOR = "raymed.metrics.meteor"
_TAGS = "raymed.metrics.tags"
_NORMALITY = "raymed.metrics.normality"
_DISTINCT = "raymed.metrics.distinct"
_FINDINGS = "raymed.metrics.findings"

METRICS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        # By which epochs and trials are ranked: the value of `ranking`.
        Metric("score", "score", "run", objective=True),
        Metric("bleu_1", "BLEU-1", "reports", _BLEU),
        Metric("bleu_2", "BLEU-2", "reports", _BLEU),
        Metric("bleu_3", "BLEU-3", "reports", _BLEU),
        Metric("bleu_4", "BLEU-4", "reports", _BLEU),
        Metric("meteor", "METEOR", "reports", _METEOR),
        Metric("rouge_l", "ROUGE-L", "reports", _ROUGE, "ROUGE"),
        Metric("cider", "CIDEr", "reports", _CIDER, objective=True),
        Metric("recall_5", "tag recall@5", "tags", _TAGS, "R@5", objective=True),
        Metric("recall_10", "tag recall@10", "tags", _TAGS, "R@10"),
        Metric("recall_20", "tag recall@20", "tags", _TAGS, "R@20"),
        Metric("finding_precision", "finding precision", "findings", _FINDINGS),
        Metric("finding_recall", "finding recall", "findings", _FINDINGS),
        Metric("finding_f1", "finding F1", "findings", _FINDINGS),
        Metric(
            "normality",
            "normality share",
            "reports",
            _NORMALITY,
            "normality",
            table="2",
            by_sentence=True,
        ),
        Metric("abnormality", "abnormality share", "reports", head="abnormality", table="2"),
        # In every table, after the metrics that are the table's own.
        Metric("distinct", "distinct reports", "reports", _DISTINCT, "distinct", 0, table=""),
        Metric("right", "sentences naming a finding of the image", "attention", head="true"),
        Metric("region", "strongest region on the finding", "attention", head="region"),
        Metric("region_fixed", "best single region on the finding", "attention", head="fixed"),
        Metric("region_chance", "random region on the finding", "attention", head="chance"),
        Metric("tag", "strongest tag is the finding's", "attention", head="tag"),
        Metric("tag_chance", "random attended tag is the finding's", "attention", head="chance"),
        Metric(
            "seconds_per_report",
            "seconds per report",
            "run",
            digits=4,
            direction="min",
            objective=True,
        ),
        # Measured in training for the score; see `raymed.training.self_critical`.
        Metric("reward", "mean reward", "run", head="reward"),
        Metric("reward_greedy", "mean reward of greedy reports", "run", head="greedy reward"),
        Metric("stop_threshold", "best threshold", "run", digits=2),
        Metric("top_tags", "best M", "run", digits=0),
    )
}
"""By key, in the order in which they are shown."""

_RANKING = ("cider", "recall_5")


def ranking(measured: Mapping[str, float | None]) -> Metric:
    """The metric by which a system is ranked, its score: CIDEr if it has one, else recall@5.

    Args:
        measured: Values by key. A system that writes no reports has no CIDEr.
    """
    return METRICS[next((key for key in _RANKING if measured.get(key) is not None), _RANKING[-1])]


def ranking_of(writes_reports: bool) -> Metric:
    """The same for a system that has not been measured yet."""
    return next(METRICS[k] for k in _RANKING if METRICS[k].of != "reports" or writes_reports)


def objective_metric(key: str, writes_reports: bool) -> Metric:
    """The metric of a sweep's objective, ``score`` being what the system is ranked by."""
    return ranking_of(writes_reports) if key == "score" else METRICS[key]


def summary(measured: Mapping[str, float | None]) -> str:
    """Scores on one line, such as ``CIDEr 0.123, tag recall@5 0.456``."""
    metrics = [metric for metric in scored_metrics() if metric.key in measured]
    return ", ".join(f"{metric.label} {metric.format(measured[metric.key])}" for metric in metrics)


def ranked_score(measured: Mapping[str, float | None]) -> str:
    """The score alone, such as ``CIDEr 0.123``."""
    key = ranking(measured).key
    return summary({key: measured[key]})


def scored_metrics() -> list[Metric]:
    """The metrics of a split's scores, each computed by its module."""
    return [metric for metric in METRICS.values() if metric.module]


def objective_metrics() -> list[Metric]:
    """The metrics that a sweep can search for."""
    return [metric for metric in METRICS.values() if metric.objective]


def leaderboard_metrics(rows: Iterable[Mapping[str, float]]) -> list[Metric]:
    """The columns of a leaderboard: objectives, and what a run found, where some row has them."""
    found = {key for row in rows for key in row}
    metrics = [metric for metric in METRICS.values() if metric.objective or metric.of == "run"]
    return [metric for metric in metrics if metric.key in found]


def table_metrics(table: str) -> list[Metric]:
    """The columns of a table beside the paper's: ``1``, ``2``, ``3`` or ``attention``."""
    return [metric for metric in METRICS.values() if metric.of_table == table]
