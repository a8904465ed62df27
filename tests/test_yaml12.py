"""Numbers and texts are read alike in files, in key=value, and in every part of a sweep."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from raymed import yaml12
from raymed.absolute_paths import with_absolute_paths
from raymed.config import Config, load
from raymed.data.sources import load_settings
from raymed.errors import UsageError

NUMBERS = {
    "1e-3": 0.001,
    "1E5": 100000.0,
    ".5e-2": 0.005,
    "+1e3": 1000.0,
    "2.e1": 20.0,
    "0.25": 0.25,
    "010": 10.0,
    "'1e-3'": 0.001,
}


def everywhere(number: str) -> str:
    """A file with a number in every part that takes one."""
    return f"""
training: {{learning_rate: {number}}}
tune:
  points_to_evaluate: [{{loss.word: {number}, loss.sent: {number}, loss.tag: {number}}}]
  space:
    loss.word: {{choice: [7, {number}]}}
    loss.tag: {{uniform: [{number}, 1e9], when: {{loss.word: [{number}]}}}}
    loss.sent: {{log_uniform: [1e7, 1e8], or: {number}}}
table: {{systems: {{lrcn: {{loss.tag: {number}}}}}}}
"""


def found(config: Config) -> list[Any]:
    space, (point,) = config.tune.space, config.tune.points_to_evaluate
    word, tag, sent = (space[key] for key in ("loss.word", "loss.tag", "loss.sent"))
    assert word.choice
    assert word.choice[0] == 7
    assert tag.uniform
    return [
        config.training.learning_rate,
        *point.values(),
        word.choice[1],
        tag.uniform[0],
        *tag.when["loss.word"],
        sent.or_value,
        config.table.systems["lrcn"]["loss.tag"],
    ]


@pytest.mark.parametrize(("text", "number"), NUMBERS.items())
def test_a_number_is_one_wherever_it_stands(text: str, number: float, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(everywhere(text))
    config = load(file)
    assert [(type(one), one) for one in found(config)] == [(float, number)] * 9
    # The same as key=value, and after it was written and read again.
    settings = [
        f"training.learning_rate={text}",
        f"tune.points_to_evaluate=[{{loss.word: {text}, loss.sent: {text}, loss.tag: {text}}}]",
        f"tune.space.loss.word={{choice: [7, {text}]}}",
        f"tune.space.loss.tag={{uniform: [{text}, 1e9], when: {{loss.word: [{text}]}}}}",
        f"tune.space.loss.sent={{log_uniform: [1e7, 1e8], or: {text}}}",
        f"table.systems.lrcn.loss.tag={text}",
    ]
    assert load(None, settings) == config
    file.write_text(config.to_yaml())
    assert load(file) == config
    assert Config().override(yaml.safe_load(config.to_yaml())) == config


def test_values_are_of_their_keys_types() -> None:
    config = load(
        None,
        [
            "tune.space.model.train_encoder={choice: [all, 'none']}",
            "tune.space.model.top_tags={choice: [1e0, '2', 3], when: {model.train_encoder: [all]}}",
            "tune.space.model.encoder_weights={choice: [007, 1e3, none]}",
            "tune.points_to_evaluate=[{model.top_tags: 2.0, model.train_encoder: none}]",
            "table.systems.lrcn.generation.beam_width=2e0",
        ],
    )
    space = config.tune.space
    assert repr(space["model.train_encoder"].choice) == "('all', 'none')"
    assert repr(space["model.top_tags"].choice) == "(1, 2, 3)"
    assert space["model.top_tags"].when == {"model.train_encoder": ("all",)}
    assert space["model.encoder_weights"].choice == ("007", "1e3", "none")
    (point,) = config.tune.points_to_evaluate
    assert repr(point) == "{'model.top_tags': 2, 'model.train_encoder': 'none'}"
    assert repr(config.table.systems["lrcn"]) == "{'generation.beam_width': 2}"


@pytest.mark.parametrize("name", ["2024", "007", "1e3", "1.50", "0x1F", "2024-01-01", "no", "1_0"])
def test_a_text_is_what_was_written(name: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"run: {{name: {name}}}\ntable: {{runs: {{lrcn: [{name}]}}}}\n")
    config = load(file)
    assert config == load(None, [f"run.name={name}", f"table.runs.lrcn=[{name}]"])
    assert (config.run.name, config.table.runs) == (name, {"lrcn": (name,)})
    file.write_text(config.to_yaml())
    assert load(file) == config
    # Whoever reads it by YAML 1.1 reads the same.
    assert yaml.safe_load(config.to_yaml())["run"]["name"] == name
    assert with_absolute_paths(load(None, [f"data.path={name}"])).data.path == str(
        Path(name).absolute()
    )
    settings = load_settings("table", [f"out={name}", f"columns.report={name}"])
    assert (settings.out, settings.columns) == (name, {"report": name})


@pytest.mark.parametrize("text", ["1e-3", "010", "no", "1:30", "2024-01-01", "null", "", ".inf"])
def test_a_text_that_looks_like_something_else_is_written_in_quotes(text: str) -> None:
    written = yaml12.write({"key": text})
    assert written == f"key: '{text}'\n"
    assert yaml12.read(written) == yaml.safe_load(written) == {"key": text}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("training.epochs=1:30", "training.epochs: input should be a valid integer"),
        ("tune.space.loss.tag={choice: [1e-3, 1e-3x]}", "loss.tag: .*found '1e-3x'"),
        ("tune.space.model.top_tags={choice: [1.5]}", r"model.top_tags: .*found 1.5"),
        ("table.systems.lrcn.loss.tag=-1e-3", r"loss.tag: .*found -0.001"),
    ],
)
def test_what_is_no_number_or_does_not_fit_is_refused(setting: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load(None, [setting])
