"""The notebook of the documentation: executed, and committed with what an execution printed."""

import base64
import io
import os
import re
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def outputs(notebook: Any) -> list[list[Any]]:
    """The outputs of each cell of code."""
    return [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]


def texts(cell: list[Any]) -> str:
    """What a cell has printed and shown as text."""
    return "\n".join(
        output["text"] if "text" in output else output["data"].get("text/plain", "")
        for output in cell
    )


def figure_of(cell: list[Any]) -> np.ndarray:
    (output,) = cell
    content = io.BytesIO(base64.b64decode(output["data"]["image/png"]))
    with Image.open(content) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def assert_is_a_figure(cell: list[Any]) -> None:
    """A large picture, of which a part is coloured by attention and the rest grey."""
    picture = figure_of(cell)
    assert min(picture.shape[:2]) > 300
    assert 0.001 < (np.ptp(picture, axis=2) > 40).mean() < 0.9


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:zmq.*", "ignore::ResourceWarning")
def test_the_notebook_runs_and_shows_a_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    committed = nbformat.read(NOTEBOOK, as_version=4)
    executed = nbformat.from_dict(committed)
    for cell in executed["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    resources = {"metadata": {"path": str(tmp_path)}}
    # A cell that raises an error ends the execution with it.
    NotebookClient(executed, timeout=550, kernel_name="python3", resources=resources).execute()
    assert_is_a_figure(outputs(executed)[-1])
    assert (tmp_path / "runs" / "phantom" / "test" / "scores.json").is_file()
    for found, expected in zip(outputs(executed), outputs(committed), strict=True):
        # Nothing is garbled: one line after another, without escape codes, and nothing on stderr.
        assert "\x1b" not in texts(found)
        assert all(output.get("name") != "stderr" for output in found)
        assert [*map(kind, found)][-1:] == [*map(kind, expected)][-1:]
    # Lines of progress differ, but not what was trained.
    pattern = r"^epoch (\d+)/\d+  loss"
    epochs = [re.findall(pattern, texts(cell), re.MULTILINE) for cell in outputs(executed)]
    assert epochs == [re.findall(pattern, texts(c), re.MULTILINE) for c in outputs(committed)]
    assert max(map(len, epochs)) > 3


def kind(output: Any) -> str:
    return str(sorted(output.get("data", [output["output_type"]])))


def test_the_committed_notebook_has_its_output() -> None:
    committed = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(committed)
    found = outputs(committed)
    assert all(found[1:]), "only the import shows nothing"
    assert_is_a_figure(found[-1])
    tables = [one for cell in found for one in cell if "text/html" in one.get("data", {})]
    assert len(tables) == 3
    assert NOTEBOOK.stat().st_size < 700_000
    assert "/tmp" not in "".join(map(texts, found))
