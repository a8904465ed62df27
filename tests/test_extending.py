"""A metric and a system that are registered appear everywhere by themselves."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from raymed.cli import main
from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.errors import UsageError
from raymed.evaluation import baseline_scores, evaluate
from raymed.metrics.table import METRICS, Metric
from raymed.model.systems import SYSTEMS
from raymed.tables.paper import table_systems
from raymed.tables.render import markdown_table, terminal_table
from raymed.tables.results import table_rows
from raymed.training.checkpoint import Checkpoint
from raymed.training.log import read_metrics, write_metrics
from raymed.training.loop import train
from raymed.training.worker import Worker
from raymed.tuning.leaderboard import leaderboard_table, ranked_trials, write_leaderboard
from raymed.tuning.page import write_report
from raymed.tuning.space import propose
from raymed.tuning.study import make_study
from tests.support.recording import Recorder
from tests.support.table_scores import Fabricated

LENGTH = '''
"""The mean number of words in a report."""

from raymed.metrics.scoring import Predictions, Scores


def score(predictions: Predictions) -> Scores:
    return {"words": sum(len(text.split()) for text in predictions.reports) / len(predictions.tags)}
'''
BOTH = '''
"""Attends to regions and tags."""

from raymed.model.hierarchical import Hierarchical


class Model(Hierarchical):
    visual = semantic = True
'''
SILENT = '''
"""Predicts tags alone."""

from raymed.model.systems.vgg19_tags import Model
'''


@pytest.fixture(autouse=True)
def _registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("throw_away_length", LENGTH), ("both", BOTH), ("silent", SILENT)):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(SYSTEMS, "both", "both")
    monkeypatch.setitem(SYSTEMS, "silent", "silent")
    words = Metric("words", "words per report", "reports", "throw_away_length", "words", digits=1)
    monkeypatch.setitem(METRICS, "words", words)


@pytest.fixture
def _objective(_registered: None, monkeypatch: pytest.MonkeyPatch) -> None:
    words = Metric("words", "words per report", "reports", "throw_away_length", objective=True)
    monkeypatch.setitem(METRICS, "words", words)


def text_of(renderable: object) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


@pytest.mark.usefixtures("_objective")
def test_they_are_among_the_configurations_choices(capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"model.system": "both", "tune.objectives": {"words": "min"}}
    config = Config().override(changes)
    assert (config.model.system, config.tune.objectives) == ("both", {"words": "min"})
    with pytest.raises(UsageError, match=r"must be one of att_rk, .*, both, silent"):
        Config().override({"model.system": "neither"})
    with pytest.raises(UsageError, match=r"must be one of score, .*, words; did you mean words"):
        Config().override({"tune.objectives": {"word": "min"}})
    for command, name in (("train", "both"), ("tune", "words")):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert name in capsys.readouterr().out.split("one of" if name == "both" else "any of")[1]


def test_a_table_takes_systems_that_the_paper_lacks(tmp_path: Path) -> None:
    systems = Config().override({"table.systems": ["both", "silent", "lrcn"]}).table.systems
    assert table_systems("1", systems)[-2:] == ["co_attention", "both"]
    assert table_systems("3", systems) == ["vgg19_tags", "co_attention", "both", "silent"]
    made = Fabricated(tmp_path / "runs")
    runs = [made.run("both", seed, words=8.25) for seed in (0, 1)] + [made.run("lrcn", 0)]
    rows = table_rows("1", "iu_xray", runs)
    assert [row.name for row in rows[3:]] == ["lrcn", "both", "ground truth"]
    heads, _, *lines = (x for x in markdown_table("1", rows, "").splitlines() if x[:1] == "|")
    (own,) = (line for line in lines if line.startswith("| both"))
    cells = dict(zip(heads.split("|"), own.split("|"), strict=True))
    assert cells[" words "] == " 8.2 ±0.0 "
    assert "words" in text_of(terminal_table("1", rows))


def test_a_run_is_trained_and_evaluated(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = tiny.override({"model.system": "both", "training.epochs": 1})
    train(config, tmp_path / "run", Worker(torch.device("cpu")), Recorder())
    assert "words" not in read_metrics(tmp_path / "run" / "metrics.csv")[0]
    checkpoint = Checkpoint.open(tmp_path / "run")
    evaluation = evaluate(checkpoint, checkpoint.config, "val", tmp_path / "val")
    predictions = pq.read_table(tmp_path / "val" / "predictions.parquet")
    lengths = [len(text.split()) for text in predictions["report"].to_pylist()]
    expected = sum(lengths) / len(lengths)
    left = json.loads((tmp_path / "val" / "scores.json").read_text())
    assert left["rows"]["both"]["words"] == pytest.approx(expected)
    assert left["rows"]["constant report"]["words"] > 0
    (line,) = (x for x in text_of(evaluation.table()).splitlines() if "words per report" in x)
    assert f"{expected:.1f}" in line.split()


@pytest.mark.usefixtures("_objective")
def test_an_objective_is_measured_after_every_epoch_and_ranks_trials(
    tiny: Config, tmp_path: Path
) -> None:
    config = tiny.override(
        {
            "model.system": "both",
            "training.epochs": 1,
            "run.folder": str(tmp_path),
            "run.name": "sweep",
            "tune.space": {"loss.tag": {"choice": [1.0, 2.0]}},
            "tune.objectives": {"words": "max"},
        }
    )
    train(config, tmp_path / "run", Worker(torch.device("cpu")), Recorder())
    (row,) = read_metrics(tmp_path / "run" / "metrics.csv")
    assert row["words"] > 0
    folder = tmp_path / "sweep"
    (folder / "trials" / "trial-000").mkdir(parents=True)
    (folder / "sweep.yaml").write_text(config.to_yaml())
    study = make_study(config, folder)
    trial = study.ask()
    propose(trial, config.tune.space)
    write_metrics(folder / "trials" / "trial-000" / "metrics.csv", [row])
    study.tell(trial, row["words"])

    results = ranked_trials(study, config, folder)
    assert results[0].objectives == (row["words"],)
    baselines = baseline_scores(PreparedDataset.open(config.data.path), "val", None)
    shown = text_of(leaderboard_table(results, baselines))
    assert f"{row['words']:.3f}" in shown
    assert f"{baselines['nearest image']['words']:.3f}" in shown
    write_leaderboard(tmp_path / "leaderboard.parquet", results, config)
    (kept,) = pq.read_table(tmp_path / "leaderboard.parquet").to_pylist()
    assert kept["words"] == row["words"]
    write_report(folder, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for element in (
        "<th>words per report</th>",
        "<button>words per report</button>",
        "<dd>words per report (max) on the validation split</dd>",
    ):
        assert element in page
