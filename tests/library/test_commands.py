"""`import raymed`: the functions behind the commands, called as in a script or a notebook."""

import csv
import gc
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import raymed
from raymed import config as configuration
from raymed.cli import main
from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.model.system import System
from raymed.training.log import METRICS_FILE

HEAVY = ("torch", "ray", "numpy", "pandas", "matplotlib", "optuna")


def test_importing_loads_only_what_is_used() -> None:
    program = f"""
import sys
import raymed
assert set(raymed.__all__) <= set(dir(raymed))
raymed.UsageError, raymed.Config
print([name for name in {HEAVY} if name in sys.modules])
raymed.train, raymed.evaluate
print([name for name in {HEAVY} if name in sys.modules])
raymed.load
print([name for name in ("torch", "ray", "pandas", "optuna") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["[]", "[]", "['torch']"]


def test_every_public_name_exists_and_others_do_not() -> None:
    for name in raymed.__all__:
        assert getattr(raymed, name) is not None
    with pytest.raises(AttributeError, match="module 'raymed' has no attribute 'trian'"):
        raymed.trian  # noqa: B018
    assert (Path(raymed.__file__).parent / "py.typed").is_file()


@pytest.fixture(scope="module")
def run(tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> raymed.TrainedRun:
    folder = tmp_path_factory.mktemp("library")
    return raymed.train(tiny, {"run.folder": folder}, quiet=True)


def as_csv(path: Path) -> list[dict[str, float]]:
    rows = csv.DictReader(io.StringIO(path.read_text()))
    return [{key: float(value) for key, value in row.items()} for row in rows]


def test_the_epochs_of_a_run_as_a_dataframe(run: raymed.TrainedRun) -> None:
    frame = run.dataframe()
    expected = as_csv(Path(run.folder) / METRICS_FILE)
    assert len(frame) == 3
    assert frame.to_dict("records") == expected
    assert frame["epoch"].tolist() == [1, 2, 3]
    assert frame["epoch"].dtype.kind == "i"
    best = max(expected, key=lambda row: (row["score"], -row["loss"]))
    assert run.best.history[-1]["score"] == best["score"]
    assert run.score == f"CIDEr {best['cider']:.3f}"
    assert repr(run) == f"TrainedRun('{run.folder}': epoch {run.best.epoch}, {run.score})"


@pytest.mark.parametrize("form", ["file", "text", "sections", "dotted", "config"])
@pytest.mark.parametrize("texts", [True, False])
def test_a_configuration_in_each_form(
    form: str, texts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections: dict[str, Any] = {
        "data": {"path": tmp_path / "data"},
        "training": {"epochs": 7, "batch_size": 5},
        "tune": {"space": {"loss.tag": {"uniform": [1, 2]}}},
    }
    file = tmp_path / "run.yaml"
    file.write_text(
        f"data: {{path: {tmp_path / 'data'}}}\ntraining: {{epochs: 7, batch_size: 5}}\n"
        "tune: {space: {loss.tag: {uniform: [1, 2]}}}\n"
    )
    given = {
        "file": file,
        "text": str(file),
        "sections": sections,
        "dotted": {f"{s}.{key}": v for s, keys in sections.items() for key, v in keys.items()},
        "config": configuration.load(file),
    }[form]
    seen: list[Config] = []

    def run_training(config: Config, console: Console) -> None:  # noqa: ARG001
        seen.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("raymed.launch.run.run_training", run_training)
    settings: Any = ["training.epochs=3", "loss.tag=1e-1"]
    if not texts:
        settings = {"training": {"epochs": 3}, "loss.tag": 0.1}
    before = json.dumps([sections, None if texts else settings], default=str)
    with pytest.raises(KeyboardInterrupt):
        raymed.train(given, settings)
    (config,) = seen
    assert (config.training.epochs, config.training.batch_size) == (3, 5)
    assert config.loss.tag == 0.1
    assert config.data.path == str(tmp_path / "data")
    assert config.tune.space["loss.tag"].uniform == (1, 2)
    assert json.dumps([sections, None if texts else settings], default=str) == before


@pytest.mark.parametrize(
    ("config", "settings", "words"),
    [
        ({"trainig.epochs": 3}, (), r"^config: trainig.epochs: no such key; did you mean training"),
        ({}, {"training.epochs": 0}, r"^config: training.epochs: .* \(found 0\)"),
        ({}, ["training.epochs"], "'training.epochs' is not of the form key=value"),
        ({}, [3], "3 is not of the form key=value"),
        ({3: 4}, (), "config: keys must be texts, not 3"),
        (Config(), {"training.epochz": 1}, r"^settings: training.epochz: no such key"),
        ("gone.yaml", (), "^gone.yaml: cannot be read"),
    ],
)
def test_faults_of_a_configuration_are_usage_errors(config: Any, settings: Any, words: str) -> None:
    with pytest.raises(raymed.UsageError, match=words):
        raymed.train(config, settings)


def test_scores_as_a_dataframe(run: raymed.TrainedRun, tmp_path: Path) -> None:
    found = raymed.evaluate(run, "val", out=tmp_path / "scores", quiet=True)
    frame = found.dataframe()
    written = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert list(frame.columns) == ["system", "metric", "score", "low", "high"]
    systems = frame["system"].unique().tolist()
    assert systems == [*written["rows"], "truth"]
    for _, (system, metric, score, low, high) in frame.iterrows():
        if system == "truth":
            assert score == written[f"truth_{metric}"]
            continue
        expected = written["rows"][system][metric]
        assert score == expected or (expected is None and score != score)
        bounds = written["intervals"][system].get(metric)
        assert [low, high] == bounds or (bounds is None and low != low and high != high)
    assert frame["low"].notna().sum() > 10
    cider = frame.query("metric == 'cider' and system != 'truth'")
    assert len(cider) == len(systems) - 1


def test_a_command_prints_what_its_function_prints(
    run: raymed.TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores"
    assert main(["evaluate", str(run.folder), "split=val", f"out={out}"]) == 0
    by_command = capsys.readouterr().out
    console = Console(file=io.StringIO(), width=80)
    raymed.evaluate(run, "val", out=out, console=console)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == by_command
    assert capsys.readouterr().out == ""
    raymed.evaluate(run, "val", out=out)
    assert capsys.readouterr().out == by_command
    raymed.evaluate(run, "val", out=out, quiet=True)
    assert capsys.readouterr() == ("", "")
    with pytest.raises(raymed.UsageError, match=r"quiet: .* cannot be combined with console"):
        raymed.evaluate(run, "val", out=out, quiet=True, console=console)


def test_preparing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "data"
    info = raymed.prepare("phantom", out=out, studies=20, image_size=32, quiet=True)
    assert capsys.readouterr() == ("", "")
    assert sum(info.counts.values()) == 20
    assert info.content_hash == PreparedDataset.open(out).info.content_hash
    with pytest.raises(raymed.UsageError, match="already there"):
        raymed.prepare("phantom", out=out, studies=20, image_size=32)
    for source, path, settings, words in (
        ("phantoms", None, {}, "source: must be one of iu-xray, .*, phantom, not 'phantoms'"),
        ("phantom", tmp_path, {}, "prepare phantom: expected no path, found /"),
        ("table", None, {}, "prepare table: expected one path, found none"),
        ("phantom", None, {}, "prepare: out: must be given"),
        ("phantom", None, {"out": out, "studies": 0}, "prepare: studies: .*found 0"),
        ("phantom", None, {"out": out, "columns": {"image": "file"}}, "columns: is a setting of"),
    ):
        with pytest.raises(raymed.UsageError, match=words):
            raymed.prepare(source, path, **settings)  # type: ignore[arg-type]


def test_preparing_a_table_with_mapped_columns(tmp_path: Path) -> None:
    films = tmp_path / "films"
    raymed.prepare("phantom", out=films, studies=20, image_size=32, quiet=True)
    split = PreparedDataset.open(films).split("train")
    lines = ["file,text,words"]
    for row in range(len(split)):
        Image.fromarray(split.pixels(np.array([row]))[0]).save(tmp_path / f"{row}.png")
        lines.append(f"{row}.png,{split.references[row]},{'normal' if row % 2 else 'effusion'}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    info = raymed.prepare(
        "table",
        tmp_path / "table.csv",
        out=tmp_path / "own",
        image_size=32,
        workers=0,
        columns={"image": "file", "report": "text", "tags": "words"},
        quiet=True,
    )
    assert sum(info.counts.values()) == len(split)


class InterruptingConsole(Console):
    """As if Ctrl-C were pressed when the second epoch's line is printed."""

    def print(self, *objects: Any, **settings: Any) -> None:
        if str(objects[0]).startswith("epoch 2/"):
            raise KeyboardInterrupt
        super().print(*objects, **settings)


def test_an_interrupt_leaves_no_model_in_memory(tiny: Config, tmp_path: Path) -> None:
    def models() -> int:
        gc.collect()
        return sum(issubclass(type(one), System) for one in gc.get_objects())

    before = models()
    console = InterruptingConsole(file=io.StringIO())
    # As in a notebook, the error is kept, and its frames with it.
    with pytest.raises(KeyboardInterrupt) as kept:
        raymed.train(tiny, {"run.folder": tmp_path}, console=console)
    names = [entry.name for entry in kept.traceback]
    assert "train" in names
    assert "epoch" in names
    assert models() == before
    # In the same process the run is resumed.
    assert len(raymed.train(tiny, {"run.folder": tmp_path}, quiet=True).dataframe()) == 3
