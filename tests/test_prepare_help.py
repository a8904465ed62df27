import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from raymed.cli import main
from raymed.data.dataset import PreparedDataset
from raymed.data.examples import Example
from raymed.data.sources import SOURCES, all_sources
from raymed.data.sources.source import Source
from raymed.sections import PrepareConfig


def test_every_source_and_setting_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["prepare", "--help"])
    assert left.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    settings = [line for line in lines if line.startswith("  ") and line[2:3] not in ("", " ")]
    fields = {
        name: field
        for source in all_sources().values()
        for name, field in source.settings.model_fields.items()
    }
    assert {"columns", "studies"} < set(fields)
    for name, field in fields.items():
        shown = {"columns": "columns.FIELD"}.get(name, name)
        (line,) = [line for line in settings if line.startswith(f"  {shown}: ")]
        if field.default and name != "out":
            assert f"(default {field.default}" in line
    assert "  out: text (required)" in lines
    assert "  image_size: an integer, at least 8 (default 224)" in lines
    assert "  views: all, frontal or lateral (default all; for iu-xray, mimic-cxr, table)" in lines
    assert "  overwrite: true or false (default false)" in lines
    for source in SOURCES:
        assert any(line.startswith(f"  {source} ") for line in settings)
    assert max(map(len, lines)) <= 100


def test_each_source_takes_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    phantom = text.partition(" phantom simulated")[2].partition("settings, as")[0]
    table = text.partition(" table FILE")[2].partition(" phantom simulated")[0]
    assert "studies" in phantom
    assert "studies" not in table
    assert "tag_separator" in table
    assert "tag_separator" not in phantom


@pytest.mark.parametrize(
    ("source", "setting"),
    [
        (["phantom"], "columns.report=text"),
        (["iu-xray", "FOLDER"], "tag_separator=,"),
        (["peir-gross", "FOLDER"], "studies=9"),
        (["table", "t.csv"], "studies=9"),
    ],
)
def test_a_setting_of_another_source_is_refused(
    source: list[str], setting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", *source, "out=nowhere", setting]) == 2
    name = setting.partition("=")[0].partition(".")[0]
    error = capsys.readouterr().err
    assert error.startswith(f"raymed: {name}: is a setting of ")
    assert f"; {source[0]} would ignore it" in error


class NoiseSettings(PrepareConfig):
    loudness: int = 9
    """Greatest pixel value."""


def test_a_registered_source_appears_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One `Source` and one entry of the registry are all that a new source needs."""

    def read(path: Path, settings: NoiseSettings, _: object) -> list[Example]:
        rng = np.random.default_rng(settings.seed)
        count = int(path.read_text())
        pixels = rng.integers(0, settings.loudness, (count, 8, 8), np.uint8, endpoint=True)
        return [
            Example(f"i{n}", f"s{n}", pixels[n], f"Noise {'ab'[n % 2]}.", ("ab"[n % 2],))
            for n in range(count)
        ]

    noise = Source("noise", "random pixels", read, path="FILE", settings=NoiseSettings)
    module = ModuleType("noise")
    module.SOURCE = noise  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "noise", module)
    monkeypatch.setitem(SOURCES, "noise", "noise")
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    text = capsys.readouterr().out
    assert "  noise FILE         random pixels\n" in text
    assert "  loudness: an integer (default 9; for noise)\n      Greatest pixel value." in text
    with pytest.raises(SystemExit):
        main(["prepare", "nothing"])
    assert "noise" in capsys.readouterr().err

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "count").write_text("12")
    out = tmp_path / "out"
    command = ["prepare", "noise", str(tmp_path / "count"), f"out={out}", "workers=0"]
    assert main([*command, "image_size=8", "loudness=3"]) == 0
    dataset = PreparedDataset.open(out)
    assert (dataset.info.source, dataset.info.prepared.images) == ("noise", 12)
    train = dataset.split("train")
    assert train.pixels(np.arange(len(train))).max() == 3
    capsys.readouterr()
    assert main(["prepare", "phantom", f"out={out}", "loudness=3"]) == 2
    assert "loudness: is a setting of noise; phantom would" in capsys.readouterr().err
    assert main([*command, "loudnes=3"]) == 2
    assert "did you mean loudness?" in capsys.readouterr().err
