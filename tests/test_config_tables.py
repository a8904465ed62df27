"""The table section of the configuration, and the systems that it names."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from raymed.config import load
from raymed.model.systems import SYSTEMS
from tests.support.config_faults import faults


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["table.seeds=[]"], ["table.seeds: must have at least one (found [])"]),
        (
            ["table.seeds=[0, 1, 0, 1, 2]"],
            ["table.seeds: must be distinct, but 0, 1 is repeated (found [0, 1, 0, 1, 2])"],
        ),
        (
            ["table.seeds=[3, -1]"],
            ["table.seeds.1: input should be greater than or equal to 0 (found -1)"],
        ),
        (["table.seeds=3"], ["table.seeds: input should be a valid list (found 3)"]),
        (
            ["table.runs.lrcn=[runs/a, runs/a]"],
            [
                "table.runs.lrcn: must be distinct, but runs/a is repeated "
                "(found ['runs/a', 'runs/a'])"
            ],
        ),
        (
            ["table.systems.lrcn.loss.tga=2"],
            ["table.systems.lrcn: loss.tga: no such key; did you mean loss.tag?"],
        ),
        (
            ["table.systems.lrcn.loss.tag=-2"],
            ["table.systems.lrcn: loss.tag: input should be greater than or equal to 0 (found -2)"],
        ),
        (
            ["table.systems={lrcn: {training: {epochs: 3, batch_size: 2}}}"],
            [
                "table.systems.lrcn: training: is a section; write its keys as training.epochs, "
                "training.batch_size"
            ],
        ),
        (
            ["table.systems.lrcn={training.seed: 3, data.path: x}", "table.systems.soft_att.q=1"],
            [
                "table.systems.lrcn: training.seed: cannot differ between the systems of a table",
                "table.systems.lrcn: data.path: cannot differ between the systems of a table",
                "table.systems.soft_att: q: no such key",
            ],
        ),
        (["tune.seed=4294967296"], ["tune.seed: input should be less than 4294967296"]),
    ],
)
def test_faults_of_the_table_section_and_of_seeds(
    overrides: list[str], expected: list[str]
) -> None:
    found = faults(None, *overrides)
    assert len(found) == len(expected)
    for fault, message in zip(found, expected, strict=True):
        assert fault.startswith(message)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model.system=co_atention", "model.system"),
        ("table.systems.co_atention.loss.tag=2", "table.systems.co_atention"),
        ("table.runs.co_atention=[x]", "table.runs.co_atention"),
        ("tune.space.model.system={choice: [lrcn, co_atention]}", "tune.space: model.system"),
    ],
)
def test_an_unknown_system_is_refused_with_the_nearest(override: str, key: str) -> None:
    (fault,) = faults(None, override)
    assert fault == (
        f"{key}: must be one of att_rk, cnn_rnn, co_attention, lrcn, no_attention, semantic_only, "
        "soft_att, transformer, vgg19_tags, visual_only; did you mean co_attention? "
        "(found 'co_atention')"
    )


def test_every_system_can_be_chosen() -> None:
    for system in SYSTEMS:
        assert load(None, [f"model.system={system}"]).model.system == system
    # For a name unlike any other there is no suggestion.
    (fault,) = faults(None, "model.system=zzzz")
    assert "did you mean" not in fault


def test_settings_of_single_systems_round_trip(tmp_path: Path) -> None:
    def write(tree: Any, name: str = "run.yaml") -> Path:
        (tmp_path / name).write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
        return tmp_path / name

    file = write({"table": {"systems": {"lrcn": {"loss.tag": 2, "model.dropout": 0.1}}}})
    overrides = ["table.systems.lrcn.loss.tag=3", "table.systems.soft_att.training.epochs=4"]
    config = load(file, [*overrides, "table.runs.att_rk=[runs/a]", "table.seeds=[5]"])
    assert config.table.systems == {
        "lrcn": {"loss.tag": 3, "model.dropout": 0.1},
        "soft_att": {"training.epochs": 4},
    }
    assert (config.table.runs, config.table.seeds) == ({"att_rk": ("runs/a",)}, (5,))
    assert load(write(config.to_yaml(comments=True), "again.yaml")) == config
    over = write({"base": "run.yaml", "table": {"systems": {"lrcn": {"loss.tag": 9}}}}, "over.yaml")
    assert load(over).table.systems["lrcn"] == {"loss.tag": 9, "model.dropout": 0.1}
