"""The metadata of every key: what it affects and whether it is a path."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from raymed import config as configuration
from raymed.absolute_paths import with_absolute_paths
from raymed.config import SEARCH_DEFAULTS, Config, dotted_keys, keys_that_decide
from raymed.errors import UsageError
from raymed.keys import Decides, Locates
from raymed.launch.run import run_training
from raymed.run_folder import SWEEP_FILE
from raymed.training.checkpoint import Checkpoint
from raymed.tuning.sweep import run_sweep

NO_PATHS = {"run.name", "model.encoder", "model.system", "launch.address", "tune.objectives"}
"""Keys that take any text but are not paths."""
SETTINGS = {"tune.space", "tune.points_to_evaluate", "table.systems"}
"""Keys whose values contain settings of other keys."""
SEARCH = {"loss.tag": {"uniform": [1, 2]}}


def field(key: str) -> Any:
    section, _, name = key.partition(".")
    owner: Any = Config.model_fields[section].annotation
    return owner.model_fields[name]


def texts(kind: Any) -> bool:
    """Whether a value of this type may hold any text."""
    return kind in (str, Any) or any(map(texts, getattr(kind, "__args__", ())))


@pytest.mark.parametrize("key", [*dotted_keys()])
def test_every_key_declares_what_it_affects(key: str) -> None:
    marks = [mark for mark in field(key).metadata if isinstance(mark, Decides)]
    assert len(marks) == 1, f"{key}: declare what it affects in its annotation"


@pytest.mark.parametrize("key", [*dotted_keys()])
def test_every_text_key_declares_whether_it_is_a_path(key: str) -> None:
    marked = any(isinstance(mark, Locates) for mark in field(key).metadata)
    if key in NO_PATHS | SETTINGS:
        assert not marked
    else:
        assert marked == texts(field(key).annotation), f"{key}: are its texts paths?"


def test_keys_that_may_change_and_keys_that_trials_share() -> None:
    free = {
        *(f"launch.{name}" for name in type(Config().launch).model_fields),
        *(f"table.{name}" for name in type(Config().table).model_fields),
        *("run.folder", "data.path", "data.features"),
        *("tune.trials", "tune.confirm", "tune.groups"),
    }
    assert set(keys_that_decide(Decides.NOTHING)) == free
    of_a_run = set(keys_that_decide(Decides.RUN, Decides.SCORE))
    tune = {"tune.free_threshold", "tune.free_top_tags"}
    assert {key for key in of_a_run if key.startswith(("run.", "tune.", "table."))} == tune
    # All trials of a sweep share these; otherwise their scores could not be compared.
    common = tune | {"training.epochs", "training.patience"}
    common |= {"data.validation_images", "data.images_per_study"}
    assert set(keys_that_decide(Decides.SCORE)) == common


@pytest.mark.parametrize(
    "key",
    [
        "data.validation_images",
        "training.epochs",
        "training.patience",
        "data.features",
        "tune.free_threshold",
    ],
)
def test_keys_that_affect_scoring_cannot_be_searched(key: str) -> None:
    with pytest.raises(UsageError, match=f"tune.space: {key}: no such key"):
        Config().override({"tune.space": {key: {"choice": [2, 3]}}})


def test_a_single_run_of_a_sweep_drops_the_search_settings() -> None:
    sweep = Config().override(
        {
            "tune.space": SEARCH,
            "tune.points_to_evaluate": [{"loss.tag": 1}],
            "tune.objectives": {"cider": "max", "seconds_per_report": "min"},
            "tune.storage": "sqlite:////tmp/a.db",
            "tune.sampler": "random",
            "tune.free_top_tags": True,
            "tune.groups": 3,
        }
    )
    changes = {"tune.free_top_tags": True, "tune.groups": 3}
    assert sweep.override(SEARCH_DEFAULTS) == Config().override(changes)


@pytest.mark.parametrize("name", ["free_threshold", "free_top_tags"])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("more", [0, 1])
def test_the_kind_of_score_cannot_change_within_a_run(
    tiny: Config, tmp_path: Path, name: str, before: bool, more: int
) -> None:
    """Whether the run is finished or has an epoch left."""
    key = f"tune.{name}"
    changes = {"run.folder": str(tmp_path), "training.epochs": 1, "data.validation_images": 1}
    config = tiny.override(changes | {key: before})
    run_training(config, Console(quiet=True))
    file = tmp_path / "run" / "config.yaml"
    if more:
        # As if it had been interrupted after the first of two epochs.
        config = config.override({"training.epochs": 2})
        file.write_text(config.to_yaml())
    with pytest.raises(UsageError) as raised:
        run_training(config.override({key: not before}), Console(quiet=True))
    assert f"a different configuration ({key}: {before} -> {not before})" in str(raised.value)
    free = {
        "tune.trials": 9,
        "tune.seed": 5,
        "tune.sampler": "random",
        "tune.stopping": "none",
        "launch.keep_checkpoints": 5,
        "table.seeds": [3],
        "data.features": str(tmp_path / "features"),
    }
    assert run_training(config.override(free), Console(quiet=True)).path.is_dir()
    assert Checkpoint.open(tmp_path / "run").epoch >= 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tune.free_threshold": True}, "tune.free_threshold: False -> True"),
        ({"tune.seed": 3}, "tune.seed: 0 -> 3"),
        ({"tune.storage": "sqlite:////a.db"}, "tune.storage: None -> 'sqlite:////a.db'"),
        ({"data.validation_images": 3}, "data.validation_images: None -> 3"),
    ],
)
def test_what_decides_a_sweep_cannot_change_within_it(
    tiny: Config, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    config = tiny.override({"run.folder": str(tmp_path), "launch.workers": 1, "tune.space": SEARCH})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / SWEEP_FILE).write_text(config.to_yaml())
    with pytest.raises(UsageError) as raised:
        run_sweep(config.override(changes), Console(quiet=True))
    assert f"a sweep with a different configuration ({words})" in str(raised.value)


RELATIVE: dict[str, Any] = {
    "run.folder": "runs",
    "data.path": "data/phantom",
    "data.features": "features",
    "model.encoder_weights": "vgg.pth",
    "training.start_from": "runs/a",
    "tune.storage": "sqlite:///study.db?timeout=9",
    "tune.points_to_evaluate": [{"model.encoder_weights": "runs/b", "loss.tag": 2}],
    "tune.space": {
        "model.encoder_weights": {"choice": ["runs/b", "imagenet", "s3://bucket/c"]},
        "loss.tag": {"uniform": [1, 2], "when": {"model.encoder_weights": ["runs/b"]}},
    },
    "table.runs": {"lrcn": ["runs/d", "s3://bucket/e"]},
    "table.systems": {"lrcn": {"model.encoder_weights": "runs/f", "loss.tag": 3}},
}


def test_all_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {
        key for key in dotted_keys() if any(isinstance(m, Locates) for m in field(key).metadata)
    }
    assert paths | SETTINGS == RELATIVE.keys()
    monkeypatch.chdir(tmp_path)
    config = with_absolute_paths(Config().override(RELATIVE))
    here = str(tmp_path)
    assert config.run.folder == f"{here}/runs"
    assert config.data.path == f"{here}/data/phantom"
    assert config.data.features == f"{here}/features"
    assert config.model.encoder_weights == f"{here}/vgg.pth"
    assert config.training.start_from == f"{here}/runs/a"
    assert config.tune.storage == f"sqlite:///{here}/study.db?timeout=9"
    weights = config.tune.space["model.encoder_weights"]
    assert weights.choice == (f"{here}/runs/b", "imagenet", "s3://bucket/c")
    assert config.tune.space["loss.tag"].when == {"model.encoder_weights": (f"{here}/runs/b",)}
    assert config.tune.space["loss.tag"].uniform == (1, 2)
    assert config.tune.points_to_evaluate == (
        {"model.encoder_weights": f"{here}/runs/b", "loss.tag": 2},
    )
    assert config.table.runs == {"lrcn": (f"{here}/runs/d", "s3://bucket/e")}
    own = {"model.encoder_weights": f"{here}/runs/f", "loss.tag": 3}
    assert config.table.systems == {"lrcn": own}
    # From anywhere else they are the same.
    monkeypatch.chdir("/")
    assert with_absolute_paths(config) == config
    assert with_absolute_paths(configuration.load(None)).tune.storage is None


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///:memory:", "sqlite:////a/b.db", "postgresql://u:p@host/study"],
)
def test_other_databases_stay_where_they_are(url: str) -> None:
    assert with_absolute_paths(Config().override({"tune.storage": url})).tune.storage == url
