"""The demo's folder; `tests/test_package.py` runs a small demo from beginning to end."""

from pathlib import Path

import pytest
from rich.console import Console

from raymed import demo
from raymed.config import load
from raymed.errors import UsageError
from raymed.examples import example


def test_the_demo_empties_only_its_own_folder(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    changes = {"run.folder": str(folder), "data.path": str(tmp_path / "phantom")}
    config = load(example("tune_configs/demo.yaml"), changes)
    with pytest.raises(UsageError, match="exists but is not an earlier demo"):
        demo.run_demo(config, Console(quiet=True))
    assert (folder / "thesis.txt").read_text() == "years of work"
    assert not (tmp_path / "phantom").exists()
