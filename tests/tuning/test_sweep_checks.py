"""What a sweep refuses before it starts anything."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from raymed.config import Config
from raymed.errors import UsageError
from raymed.tuning.sweep import check_sweep, run_sweep

SPACE = {"loss.tag": {"log_uniform": [0.1, 10]}}


def sweep(tiny: Config, **changes: Any) -> Config:
    keys = {key.replace("__", "."): value for key, value in changes.items()}
    return tiny.override({"launch.workers": 1, "tune.space": SPACE, "tune.trials": 2} | keys)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tune__space": {}}, "tune.space: is empty"),
        ({"launch__workers": 0}, "launch.workers: 0 trains in the calling process"),
        ({"data__path": "nowhere"}, "nowhere: not a prepared dataset"),
        (
            {"tune__space": {"model.top_tags": {"integer": [2, 400]}}},
            "model.top_tags: the model is to attend to 400 tags",
        ),
        (
            {"tune__space": {"model.top_tags": {"choice": [400, 2]}}},
            "model.top_tags: the model is to attend to 400 tags",
        ),
        (
            # Each is possible, and with one width for both embeddings and states.
            {
                "tune__space": {
                    "loss.tag": {"choice": [1.0, 2.0]},
                    "model.hidden_size": {"choice": [16, 32]},
                    "model.embedding_size": {"choice": [16, 32]},
                    "model.tie_embeddings": {"choice": [True], "when": {"loss.tag": [1.0]}},
                }
            },
            r"proposes model.hidden_size=16, model.embedding_size=32, model.tie_embeddings=True: "
            r"model.tie_embeddings: .*must be equal",
        ),
        (
            {
                "model__system": "transformer",
                "tune__space": {"model.hidden_size": {"integer": [16, 64]}},
            },
            "proposes model.hidden_size=17: model.hidden_size: must be a multiple of 8",
        ),
        (
            {"tune__space": {"model.encoder": {"choice": ["small", "resnet18"]}}},
            "proposes model.encoder=resnet18: model.encoder: resnet18 makes a single region",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused(
    tiny: Config, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        run_sweep(sweep(tiny, **changes, run__folder=str(tmp_path)), Console(quiet=True))
    assert list(tmp_path.iterdir()) == []


CIDER_OF_NONE = r"tune.objectives: cider: vgg19_tags \({}model.system\) writes no reports"
MIXED = "tune.space: model.system: the score of vgg19_tags is the tag recall@5 and that of lrcn "
BOTH = {"choice": ["lrcn", "vgg19_tags"]}


@pytest.mark.parametrize(
    ("system", "space", "objectives", "words"),
    [
        ("vgg19_tags", SPACE, {"cider": "max"}, CIDER_OF_NONE.format("")),
        (
            "vgg19_tags",
            SPACE,
            {"seconds_per_report": "min", "cider": "max"},
            CIDER_OF_NONE.format(""),
        ),
        ("lrcn", {"model.system": BOTH}, {"cider": "max"}, CIDER_OF_NONE.format("tune.space: ")),
        ("lrcn", {"model.system": BOTH}, {}, MIXED),
        ("lrcn", {"model.system": BOTH}, {"recall_5": "max", "score": "max"}, MIXED),
        (
            # Where the condition does not hold, the system stays the fixed one.
            "vgg19_tags",
            {
                "loss.tag": {"choice": [1.0, 2.0]},
                "model.system": {"choice": ["lrcn"], "when": {"loss.tag": [1.0]}},
            },
            {},
            MIXED,
        ),
    ],
)
def test_systems_that_are_scored_by_different_measures_do_not_compete(
    tiny: Config,
    tmp_path: Path,
    system: str,
    space: dict[str, Any],
    objectives: dict[str, str],
    words: str,
) -> None:
    changes = {"model__system": system, "tune__space": space, "tune__objectives": objectives}
    with pytest.raises(UsageError, match=words):
        run_sweep(sweep(tiny, **changes, run__folder=str(tmp_path)), Console(quiet=True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("system", "space", "objectives"),
    [
        ("vgg19_tags", SPACE, {}),
        ("vgg19_tags", SPACE, {"score": "max"}),
        ("vgg19_tags", SPACE, {"recall_5": "max", "seconds_per_report": "min"}),
        ("lrcn", {"model.system": BOTH}, {"recall_5": "max", "seconds_per_report": "min"}),
        ("vgg19_tags", {"model.system": {"choice": ["lrcn", "co_attention"]}}, {"cider": "max"}),
    ],
)
def test_systems_that_are_scored_by_one_measure_do(
    tiny: Config, system: str, space: dict[str, Any], objectives: dict[str, str]
) -> None:
    changes = {"model__system": system, "tune__space": space, "tune__objectives": objectives}
    check_sweep(sweep(tiny, **changes))


def test_a_space_that_fits_passes(tiny: Config) -> None:
    widths = ("model.hidden_size", "model.embedding_size")
    space = {"model.top_tags": {"integer": [2, 5]}, **SPACE}
    space |= {key: {"choice": [16, 32]} for key in widths}
    assert str(check_sweep(sweep(tiny, tune__space=space)).path) == tiny.data.path


def test_a_file_in_the_way_is_left_alone(tiny: Config, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UsageError, match="run: exists but is not a sweep folder"):
        run_sweep(sweep(tiny, run__folder=str(tmp_path)), Console(quiet=True))
    assert (tmp_path / "run").read_text() == "a file"


@pytest.mark.ray
def test_a_sweep_that_the_cluster_has_no_room_for_is_refused(
    tiny: Config,
    tmp_path: Path,
    ray: None,  # noqa: ARG001
) -> None:
    config = sweep(tiny, run__folder=str(tmp_path), launch__workers=3)
    with pytest.raises(UsageError, match="3 workers need 3 CPU"):
        run_sweep(config, Console(quiet=True))
