"""Rows of the tables against numpy, from made-up scores."""

import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raymed.metrics.table import table_metrics
from raymed.tables.paper import TABLE_SYSTEMS, paper_figures
from raymed.tables.results import Cell, table_rows, write_runs
from raymed.tables.runs import Run
from tests.support.table_scores import CAPTIONS, Fabricated, values_of

SEEDS = (0, 3, 11)


@pytest.fixture
def made(tmp_path: Path) -> Fabricated:
    return Fabricated(tmp_path / "runs")


def all_runs(made: Fabricated, table: str) -> list[Run]:
    attention = table == "attention"
    return [made.run(s, seed, attention) for s in TABLE_SYSTEMS[table] for seed in SEEDS]


@pytest.mark.parametrize("half", ["iu_xray", "peir_gross"])
@pytest.mark.parametrize("table", ["1", "2", "3", "attention"])
def test_rows_are_mean_and_sample_deviation_over_the_seeds(
    made: Fabricated, table: str, half: str
) -> None:
    runs = all_runs(made, table)
    rows = {row.name: row for row in table_rows(table, half, runs)}
    for system in TABLE_SYSTEMS[table]:
        row = rows[system]
        assert list(row.cells) == [metric.key for metric in table_metrics(table)]
        for measure, cell in row.cells.items():
            values = values_of(runs, system, measure)
            assert cell.mean == pytest.approx(np.mean(values), rel=1e-12)
            assert cell.deviation == pytest.approx(np.std(values, ddof=1), rel=1e-9)
        assert row.runs == 3
        assert row.paper == paper_figures(table, half).get(system, {})
        if system != "vgg19_tags":
            assert row.distinct == pytest.approx(np.mean(values_of(runs, system, "distinct")))


@pytest.mark.parametrize(
    ("table", "names"),
    [
        (
            "1",
            "constant report,nearest image,nearest image (features),cnn_rnn,lrcn,soft_att,att_rk,"
            "no_attention,semantic_only,visual_only,co_attention,ground truth",
        ),
        (
            "2",
            "constant report,nearest image,nearest image (features),soft_att,no_attention,"
            "co_attention,ground truth",
        ),
        ("3", "constant report,nearest image,nearest image (features),vgg19_tags,co_attention"),
        ("attention", "soft_att,semantic_only,visual_only,co_attention"),
    ],
)
def test_rows_are_in_the_papers_order_below_the_baselines(
    made: Fabricated, table: str, names: str
) -> None:
    runs = all_runs(made, table)
    found = [row.name for row in table_rows(table, "iu_xray", runs[::-1])]
    assert found == names.split(",")


def test_baselines_and_ground_truth_have_their_own_figures(
    made: Fabricated,
) -> None:
    runs = all_runs(made, "2")
    rows = {row.name: row for row in table_rows("2", "iu_xray", runs)}
    for name, scores in made.baselines.items():
        row = rows[name]
        share = scores["normality"]
        assert row.cells == {"normality": Cell(share), "abnormality": Cell(1 - share)}
        assert (row.paper, row.runs, row.distinct) == ({}, 0, scores["distinct"])
    truth = rows["ground truth"]
    share = made.truth["truth_normality"]
    assert truth.cells == {"normality": Cell(share), "abnormality": Cell(1 - share)}
    assert truth.paper == {"normality": 0.385, "abnormality": 0.615}
    assert (truth.runs, truth.distinct) == (0, 17)
    baseline = {row.name: row for row in table_rows("1", "iu_xray", runs)}["nearest image"]
    expected = {m: Cell(made.baselines["nearest image"][m]) for m in CAPTIONS[:7]}
    assert baseline.cells == expected


def test_features_that_were_trained_give_a_baseline_of_several_runs(made: Fabricated) -> None:
    runs = []
    for seed, cider in enumerate((0.2, 0.6)):
        made.baselines["nearest image (features)"]["cider"] = cider
        runs.append(made.run("lrcn", seed))
    rows = {row.name: row for row in table_rows("1", "iu_xray", runs)}
    row = rows["nearest image (features)"]
    assert row.cells["cider"] == Cell(pytest.approx(0.4), pytest.approx(math.sqrt(0.08)))
    assert (row.runs, row.distinct) == (2, 12)
    assert rows["nearest image"].runs == 0


def test_one_seed_has_no_deviation(made: Fabricated) -> None:
    (row,) = (
        row
        for row in table_rows("1", "iu_xray", [made.run("lrcn", 0, cider=0.25)])
        if row.name == "lrcn"
    )
    assert row.cells["cider"] == Cell(0.25, None)
    assert row.runs == 1


def test_a_missing_metric_is_not_zero(made: Fabricated) -> None:
    runs = [
        made.run("lrcn", 0, meteor=None, bleu_1=0.2),
        made.run("lrcn", 1, meteor=0.5, bleu_1=0.4),
        made.run("lrcn", 2, meteor=0.75, bleu_1=0.6),
        made.run("cnn_rnn", 0, meteor=None, normality=None),
    ]
    rows = {row.name: row for row in table_rows("1", "peir_gross", runs)}
    assert rows["lrcn"].cells["meteor"] == Cell(0.625, pytest.approx(math.sqrt(2) / 8))
    assert rows["lrcn"].cells["bleu_1"] == Cell(pytest.approx(0.4), pytest.approx(0.2))
    assert "meteor" not in rows["cnn_rnn"].cells
    assert "cider" in rows["cnn_rnn"].cells
    # No sentence was written, so neither share of them is known.
    (row,) = (
        r
        for r in table_rows("2", "iu_xray", [*runs, made.run("soft_att", 0, normality=None)])
        if r.name == "soft_att"
    )
    assert row.cells == {}


def test_attention_that_a_system_lacks_is_left_out(made: Fabricated) -> None:
    runs = [made.run("soft_att", 0, attention=True, tag=None, tag_chance=None, region=0.5)]
    (row,) = table_rows("attention", "iu_xray", runs)
    assert set(row.cells) == {"right", "region", "region_fixed", "region_chance"}
    assert row.cells["region"] == Cell(0.5)


def test_systems_without_captions_have_tag_recall_only(made: Fabricated) -> None:
    runs = all_runs(made, "3")
    rows = {row.name: row for row in table_rows("3", "peir_gross", runs)}
    assert rows["vgg19_tags"].distinct is None
    assert set(rows["vgg19_tags"].cells) == {"recall_5", "recall_10", "recall_20"}


def test_all_runs_are_read_back_from_parquet(made: Fabricated, tmp_path: Path) -> None:
    runs = [
        made.run("vgg19_tags", 0),
        made.run("co_attention", 0, attention=True, meteor=None),
        made.run("co_attention", 5, attention=True),
    ]
    write_runs(tmp_path / "all.parquet", runs)
    rows = pq.read_table(tmp_path / "all.parquet").to_pylist()
    assert [(row["system"], row["seed"]) for row in rows] == [(r.system, r.seed) for r in runs]
    assert [row["folder"] for row in rows] == [str(run.folder) for run in runs]
    for measure in ("recall_5", "meteor", "cider", "normality", "distinct"):
        for system in ("vgg19_tags", "co_attention"):
            found = [row[measure] for row in rows if row["system"] == system]
            assert found == values_of(runs, system, measure)
    assert [row["attention_region"] for row in rows] == [
        None,
        *values_of(runs, "co_attention", "region"),
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "all.parquet"}
