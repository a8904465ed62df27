import pytest

from raymed.cli import main
from raymed.prepare_help import SOURCES
from raymed.sections import PrepareConfig


def test_every_source_and_setting_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["prepare", "--help"])
    assert left.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    settings = [line for line in lines if line.startswith("  ") and line[2:3] not in ("", " ")]
    for name, field in PrepareConfig.model_fields.items():
        shown = {"columns": "columns.FIELD"}.get(name, name)
        (line,) = [line for line in settings if line.startswith(f"  {shown}: ")]
        if field.default and name != "out":
            assert f"(default {field.default}" in line
    assert "  out: a text (must be given)" in lines
    assert "  image_size: a whole number from 8 up (default 224)" in lines
    assert "  views: all, frontal or lateral (default all; for iu-xray, table)" in lines
    assert "  overwrite: true or false (default false)" in lines
    for source in SOURCES:
        assert any(line.startswith(f"  {source} ") for line in settings)
    assert max(map(len, lines)) <= 100


def test_each_source_takes_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    phantom = text.partition(" phantom chest")[2].partition("settings, as")[0]
    table = text.partition(" table FILE")[2].partition(" phantom chest")[0]
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
    assert f"and {source[0]} would ignore it" in error
