"""The demo from beginning to end, with fewer and smaller studies and trials."""

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
    }
    return load(SHIPPED, [f"{key}={value}" for key, value in changes.items()])


@pytest.mark.ray
@pytest.mark.slow
def test_the_demo_does_the_whole_main_job(
    small: Config,
    tmp_path: Path,
    ray: None,  # noqa: ARG001
) -> None:
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
    # Whatever it says where to find lies there.
    end = text[text.index("done in") :]
    for path in re.findall(rf"{re.escape(str(tmp_path))}\S*", end):
        assert Path(path).exists(), path
    folder = tmp_path / "demo"
    assert Checkpoint.open(folder / "train").config.launch.workers == 2
    assert pq.read_table(folder / "sweep" / "leaderboard.parquet").num_rows == 3
    rows = json.loads((folder / "test" / "scores.json").read_text())["rows"]
    assert set(rows) == {"co_attention", "constant report", "nearest image"}
    assert len(rows["co_attention"]) == 12
    figures = list((folder / "figures").iterdir())
    assert 1 <= len(figures) <= demo.SHOWN
    for figure in figures:
        with Image.open(figure) as picture:
            assert picture.format == "PNG"
    assert str(load(folder / "sweep" / "best.yaml").data.path) == small.data.path


def test_the_demo_empties_its_own_folder_and_no_other(small: Config, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="is not an earlier demo's folder"):
        demo.run_demo(small, Console(quiet=True))
    assert (folder / "thesis.txt").read_text() == "years of work"
    assert not (tmp_path / "phantom").exists()
