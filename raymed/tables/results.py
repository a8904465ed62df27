"""The rows of a table: mean and standard deviation over its runs' seeds."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raymed.metrics.table import Metric, table_metrics
from raymed.predictions_file import BASELINES
from raymed.provenance import KEY, with_record
from raymed.storage import AnyPath, user_output
from raymed.tables.paper import TABLE_SYSTEMS, TRUTH, paper_figures
from raymed.tables.runs import Run

RUNS_FILE = "runs.parquet"


@dataclass(frozen=True)
class Cell:
    """One figure: the mean over runs and, of two runs or more, the sample standard deviation."""

    mean: float
    deviation: float | None = None


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: The name shown in the table.
        cells: Our figures by the keys of their metrics.
        paper: The paper's figures by the keys of their metrics.
        distinct: The number of distinct reports, the mean over the runs.
        runs: The number of runs behind the row; 0 for a baseline or the ground truth.
    """

    name: str
    cells: Mapping[str, Cell]
    paper: Mapping[str, float]
    distinct: float | None = None
    runs: int = 0


def table_rows(table: str, half: str, runs: Sequence[Run]) -> list[Row]:
    """The rows of a table: baselines, systems in the paper's order, any others, ground truth.

    Args:
        table: ``1``, ``2``, ``3`` or ``attention``.
        half: The half of the paper's tables: ``iu_xray`` or ``peir_gross``.
        runs: Finished runs.
    """
    metrics, paper = table_metrics(table), paper_figures(table, half)
    scored = [(run, run.scores()) for run in runs]
    _, first = scored[0]
    rows = []
    if table != "attention":
        for name in BASELINES:
            beside = [scores["rows"][name] for _, scores in scored if name in scores["rows"]]
            rows += [_baseline(name, metrics, beside)] if beside else []
    for system in dict.fromkeys([*TABLE_SYSTEMS[table], *(run.system for run in runs)]):
        own = [_values(table, run, scores) for run, scores in scored if run.system == system]
        if own:
            counts = [values["distinct"] for values in own if values["distinct"] is not None]
            distinct = statistics.fmean(counts) if counts else None
            rows.append(
                Row(system, _cells(own, metrics), paper.get(system, {}), distinct, len(own))
            )
    if table in ("1", "2"):
        truth = _with_abnormality({"normality": first["truth_normality"]})
        cells = _cells([truth], metrics)
        rows.append(Row(TRUTH, cells, paper.get(TRUTH, {}), first["truth_distinct"]))
    return rows


def write_runs(path: AnyPath, runs: Sequence[Run]) -> None:
    """Write all runs as Parquet, a row each: every score on the test split, and the run's folder.

    The file's metadata holds what the scores were made from, by the runs' folders.
    """
    rows, records = [], {}
    for run in runs:
        scores = run.scores()
        attention = scores["attention"] or {}
        records[str(run.folder)] = scores.get(KEY)
        rows.append(
            {
                "system": run.system,
                "seed": run.seed,
                "folder": str(run.folder),
                **scores["rows"][run.system],
                **{f"attention_{key}": value for key, value in attention.items() if key != KEY},
            }
        )
    keys = list(dict.fromkeys(key for row in rows for key in row))
    with user_output(path) as partial:
        table = pa.table({key: [row.get(key) for row in rows] for key in keys})
        pq.write_table(table.cast(with_record(table.schema, records)), partial)


def _baseline(name: str, metrics: Sequence[Metric], beside: Sequence[Mapping[str, Any]]) -> Row:
    """A baseline's row, from its scores as each run has them.

    They are the same for all runs, unless images were compared by the features of the run's encoder
    and these were trained.
    """
    own = [_with_abnormality(scores) for scores in beside]
    if all(scores == own[0] for scores in own):
        own = own[:1]
    distinct = statistics.fmean(scores["distinct"] for scores in own)
    return Row(name, _cells(own, metrics), {}, distinct, len(own) if len(own) > 1 else 0)


def _values(table: str, run: Run, scores: Mapping[str, Any]) -> dict[str, float | None]:
    own = _with_abnormality(scores["rows"][run.system])
    if table == "attention":
        own |= scores["attention"] or {}
    return own


def _with_abnormality(scores: Mapping[str, Any]) -> dict[str, Any]:
    share = scores.get("normality")
    return {**scores, "abnormality": None if share is None else 1 - share}


def _cells(runs: Sequence[Mapping[str, Any]], metrics: Sequence[Metric]) -> dict[str, Cell]:
    cells = {}
    for key in (metric.key for metric in metrics):
        values = [run[key] for run in runs if run.get(key) is not None]
        if values:
            deviation = statistics.stdev(values) if len(values) > 1 else None
            cells[key] = Cell(statistics.fmean(values), deviation)
    return cells
