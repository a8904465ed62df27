"""Sweeps of the same name never share a study in a database; a sweep keeps its own when moved."""

import shutil
from contextlib import nullcontext
from pathlib import Path

import optuna
import pytest
from rich.console import Console

from raymed.config import Config
from raymed.errors import UsageError
from raymed.tuning.space import propose
from raymed.tuning.study import make_study, open_study, refuse_foreign_study, started_trials
from raymed.tuning.sweep import run_sweep


@pytest.fixture
def config(tiny: Config, tmp_path: Path) -> Config:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return tiny.override(
        {
            "run.folder": str(tmp_path / "a"),
            "launch.workers": 1,
            "tune.trials": 1,
            "tune.space": {"model.top_tags": {"choice": [2, 3]}},
            "tune.storage": f"sqlite:///{tmp_path}/studies.db",
        }
    )


@pytest.fixture
def first(config: Config, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a sweep with one finished trial, which was not really trained."""
    folder = Path(config.run.folder) / "run"

    def one_trial(study: optuna.Study, *_: object) -> None:
        trial = study.ask()
        propose(trial, config.tune.space)
        study.tell(trial, 0.5)

    monkeypatch.setattr("raymed.tuning.sweep._run_phases", one_trial)
    with pytest.raises(UsageError, match="no trial has reported a score"):
        run_sweep(config.override({"launch.address": "local"}), Console(quiet=True))
    return folder


pytestmark = pytest.mark.usefixtures("ray_is_not_started")


@pytest.fixture
def ray_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raymed.tuning.sweep.connected", nullcontext)


def refused(config: Config, folder: Path, *words: str) -> None:
    """Refused with this message; nothing is written, and the study has no trial but its own."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(UsageError) as caught:
        run_sweep(config.override({"run.folder": str(folder)}), Console(quiet=True))
    for word in (*words, "choose another run.name or another database"):
        assert word in str(caught.value)
    assert sorted(folder.rglob("*")) == before
    assert len(started_trials(open_study(config, folder))) == 1


def test_a_second_sweep_of_the_same_name_is_refused(
    config: Config, first: Path, tmp_path: Path
) -> None:
    other = tmp_path / "b"
    words = "tune.storage already has a study run with 1 trials, of the sweep in"
    refused(config, other, f"{other / 'run'}: {words} {first}:", "optuna delete-study")
    # So is a copy, as long as the first is there.
    shutil.copytree(first.parent, other)
    refused(config, other, f"{words} {first}:")
    # The first one may resume, by whichever path.
    (tmp_path / "link").symlink_to(first.parent)
    for folder in (first.parent, tmp_path / "link"):
        refuse_foreign_study(config, folder / "run")


def test_a_moved_sweep_resumes_and_reports_it(
    config: Config, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "c" / "run"
    moved.parent.mkdir()
    first.rename(moved)
    there = config.override({"run.folder": str(moved.parent)})
    with pytest.raises(UsageError, match="no trial has reported a score"):
        run_sweep(there, Console(width=200))
    assert f"the sweep was in {first} and continues in {moved}" in capsys.readouterr().out
    # From now on the study belongs to the moved one.
    refused(config, first.parent, f"of the sweep in {moved}:")


def test_a_new_sweep_does_not_get_the_study_of_a_deleted_one(config: Config, first: Path) -> None:
    shutil.rmtree(first)
    refused(config, first.parent, f"of the sweep in {first}, which no longer holds a sweep:")


def test_a_new_sweep_does_not_get_a_study_without_a_folder(config: Config, tmp_path: Path) -> None:
    study = optuna.create_study(study_name="run", storage=config.tune.storage)
    study.tell(study.ask(), 1.0)
    refused(config, tmp_path / "a", "of the sweep in an unrecorded folder:")


def test_two_that_start_at_the_same_time(config: Config, first: Path, tmp_path: Path) -> None:
    """The other one's study was created after the first check."""
    other = tmp_path / "b" / "run"
    other.mkdir(parents=True)
    with pytest.raises(UsageError, match=f"of the sweep in {first}:"):
        make_study(config, other)


def test_another_name_or_database_is_accepted(config: Config, first: Path, tmp_path: Path) -> None:
    assert first.is_dir()
    for changes in (
        {"run.name": "other"},
        {"tune.storage": f"sqlite:///{tmp_path}/other.db"},
        {"tune.storage": None},
    ):
        own = config.override({"run.folder": str(tmp_path / "b"), **changes})
        refuse_foreign_study(own, tmp_path / "b" / own.run.name)
