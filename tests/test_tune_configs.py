"""Every shipped YAML file is a valid configuration whose header says how to use it."""

from pathlib import Path

import pytest
import yaml

from raymed.config import Config, load

FOLDER = Path(__file__).parents[1] / "tune_configs"
FILES = sorted(FOLDER.glob("*.yaml"))
SPACES = sorted((FOLDER / "spaces").glob("*.yaml"))
JOINT = {
    "loss.tag",
    "loss.sent",
    "loss.word",
    "loss.attention",
    "generation.stop_threshold",
    "model.top_tags",
}


def test_runs_and_sweeps_are_shipped():
    spaces = [set(load(file).tune.space) for file in FILES]
    assert any(not space for space in spaces)
    assert any(space >= JOINT for space in spaces)


@pytest.mark.parametrize("space", SPACES, ids=lambda file: file.name)
@pytest.mark.parametrize("data", ["iu_xray", "own"])
def test_each_space_has_a_sweep_of_each_dataset(space, data):
    config, run = load(FOLDER / f"{data}_{space.name}"), load(FOLDER / f"{data}.yaml")
    assert config.tune == load(space).tune
    assert config.data == run.data
    # The first point is the paper's settings, i.e. the defaults.
    paper = Config().model_dump()
    for key, value in config.tune.points_to_evaluate[0].items():
        section, name = key.split(".")
        assert value == paper[section][name]


@pytest.mark.parametrize("file", [*FILES, *SPACES], ids=lambda file: file.name)
def test_a_shipped_file_loads_and_prints_a_complete_configuration(file):
    config = load(file)
    complete = yaml.safe_load(config.to_yaml(comments=True))
    assert set(complete) == set(Config.model_fields)
    assert Config.model_validate(complete) == config


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_header_of_a_shipped_file_says_how_to_use_it(file):
    head = [line for line in file.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(head)
    for word in ("command:", "hardware:", "score:"):
        assert word in text
    assert any(f"tune_configs/{file.name}" in line for line in head)
