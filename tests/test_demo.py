"""The demo from beginning to end, with fewer studies, smaller images and fewer trials."""

import json
import os
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from raymed import demo
from raymed.config import Config, load
from raymed.errors import UsageError
from raymed.metrics.table import scored_metrics
from raymed.notices import NOT_FOR_CLINICAL_USE
from raymed.predictions_file import BASELINES
from raymed.training.checkpoint import Checkpoint

SHIPPED = Path(__file__).parents[1] / "tune_configs" / "demo.yaml"


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(demo, "STUDIES", 40)
    monkeypatch.setattr(demo, "IMAGE_SIZE", 32)
    changes = {
        "run.folder": tmp_path / "demo",
        "data.path": tmp_path / "phantom",
        "model.hidden_size": 16,
        "model.embedding_size": 16,
        "training.epochs": 2,
        "tune.trials": 3,
        "tune.confirm.top": 1,
        "tune.confirm.seeds": 2,
    }
    return load(SHIPPED, [f"{key}={value}" for key, value in changes.items()])


@pytest.mark.ray
@pytest.mark.slow
def test_the_demo_runs_the_whole_pipeline(
    small: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ray: None,  # noqa: ARG001
) -> None:
    monkeypatch.chdir(tmp_path)
    with open(os.devnull, "w") as nowhere:
        console = Console(file=nowhere, record=True, width=100)
        demo.run_demo(small, console)
    text = console.export_text()
    steps = ["prepare", "train", "tune", "evaluate", "predict", "done in"]
    places = [re.search(rf"── .*{step}", text) for step in steps]
    assert all(places), text
    assert [place.start() for place in places if place] == sorted(
        place.start() for place in places if place
    )
    assert re.search(r"^CIDEr [\d.]+(: beats| does not beat) the ", text, re.MULTILINE)
    assert text.count(NOT_FOR_CLINICAL_USE) == len(list((tmp_path / "demo" / "figures").iterdir()))
    # All paths are relative to the working directory, and exist.
    end = text[text.index("done in") :]
    assert str(tmp_path) not in end
    listed = re.findall(r"^\S.*?  +((?:demo|phantom)\S*)", end, re.MULTILINE)
    assert "over 2 seeds, " in end
    assert "he file's own settings" in end
    assert pq.read_table(tmp_path / "demo" / "sweep" / "confirmed.parquet").num_rows == 2
    assert "demo/sweep/report.html" in listed
    assert len(listed) == 7
    for path in listed:
        assert Path(path).exists(), path
    folder = tmp_path / "demo"
    assert Checkpoint.open(folder / "train").config.launch.workers == 2
    assert pq.read_table(folder / "sweep" / "leaderboard.parquet").num_rows == 3
    best = re.search(r"^best run +(\S+)", end, re.MULTILINE)
    assert best
    assert Path(best[1]).match("demo/sweep/confirm/*-seed-1"), "the confirmed settings, not a trial"
    confirmed = load(folder / "sweep" / "best.yaml")
    assert load(Path(best[1]) / "config.yaml").loss == confirmed.loss
    rows = json.loads((folder / "test" / "scores.json").read_text())["rows"]
    assert set(rows) == {"co_attention", *BASELINES}
    assert rows["co_attention"].keys() == {metric.key for metric in scored_metrics()}
    figures = list((folder / "figures").iterdir())
    assert 1 <= len(figures) <= demo.SHOWN
    for figure in figures:
        with Image.open(figure) as picture:
            assert picture.format == "PNG"
    assert str(load(folder / "sweep" / "best.yaml").data.path) == small.data.path


def test_the_demo_empties_only_its_own_folder(small: Config, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="exists but is not an earlier demo"):
        demo.run_demo(small, Console(quiet=True))
    assert (folder / "thesis.txt").read_text() == "years of work"
    assert not (tmp_path / "phantom").exists()
