"""The study on its own: samplers by name, storages, what a killed process leaves of a journal."""

import json
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from raymed.config import Config
from raymed.errors import UsageError
from raymed.run_folder import STUDY_FILE
from raymed.tuning import study as study_module
from raymed.tuning.space import propose
from raymed.tuning.study import (
    _RemoteJournal,
    build_sampler,
    make_study,
    open_study,
    reopen_trial,
    started_trials,
)

SPACE = {"loss.tag": {"log_uniform": [0.1, 10]}, "loss.sent": {"uniform": [0, 1]}}


def config(**changes: Any) -> Config:
    settings = {"tune.space": SPACE, "tune.startup_trials": 2, "tune.seed": 3}
    return Config().override(settings | {f"tune.{key}": value for key, value in changes.items()})


def propose_and_tell(study: optuna.Study, number: int, settings: Config) -> list[dict[str, float]]:
    """The given number of proposals, each told a value of its own."""
    proposals = []
    for _ in range(number):
        study.sampler = build_sampler(settings.tune, len(started_trials(study)))
        trial = study.ask()
        proposals.append(propose(trial, settings.tune.space))
        study.tell(trial, proposals[-1]["loss.sent"])
    return proposals


@pytest.mark.parametrize("sampler", ["tpe", "cma_es", "gp", "qmc", "random"])
def test_every_sampler_searches_and_its_seed_decides(sampler: str, tmp_path: Path) -> None:
    settings = config(sampler=sampler)
    other = config(sampler=sampler, seed=4)
    for name in "abc":
        (tmp_path / name).mkdir()
    first = propose_and_tell(make_study(settings, tmp_path / "a"), 6, settings)
    assert propose_and_tell(make_study(settings, tmp_path / "b"), 6, settings) == first
    assert propose_and_tell(make_study(other, tmp_path / "c"), 6, other) != first
    assert len({tuple(one.values()) for one in first}) == 6
    # Interrupted after three, it proposes what it would have proposed.
    (tmp_path / "d").mkdir()
    three = propose_and_tell(make_study(settings, tmp_path / "d"), 3, settings)
    assert [*three, *propose_and_tell(make_study(settings, tmp_path / "d"), 3, settings)] == first


def test_names_are_optunas_samplers() -> None:
    kinds = {
        "tpe": optuna.samplers.TPESampler,
        "cma_es": optuna.samplers.CmaEsSampler,
        "gp": optuna.samplers.GPSampler,
        "qmc": optuna.samplers.QMCSampler,
        "random": optuna.samplers.RandomSampler,
    }
    for name, kind in kinds.items():
        assert type(build_sampler(config(sampler=name).tune, 0)) is kind


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(UsageError, match=r"tune\.sampler: cma_es needs the package cmaes"):
        build_sampler(config(sampler="cma_es").tune, 0)


@pytest.mark.parametrize("storage", [None, "sqlite"])
def test_what_was_told_is_there_after_opening_again(storage: str | None, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db" if storage else None
    points = [{"loss.tag": 1.0, "loss.sent": 0.5}, {"loss.tag": 2.0}]
    settings = config(storage=url, points_to_evaluate=points)
    study = make_study(settings, tmp_path)
    assert started_trials(study) == []
    proposals = propose_and_tell(study, 1, settings)
    running = study.ask()
    values = propose(running, settings.tune.space)
    assert proposals[0] == points[0]
    assert values["loss.tag"] == 2.0

    again = make_study(settings, tmp_path)
    assert [t.state for t in started_trials(again)] == [TrialState.COMPLETE, TrialState.RUNNING]
    # Asked again, the trial that was interrupted answers as before.
    reopened = reopen_trial(again, started_trials(again)[1].number)
    assert propose(reopened, settings.tune.space) == values
    again.tell(reopened, 1.0)
    assert [t.value for t in open_study(settings, tmp_path).trials] == [0.5, 1.0]
    # The points are not proposed twice.
    assert propose_and_tell(again, 1, settings)[0]["loss.tag"] not in (1.0, 2.0)
    assert (tmp_path / STUDY_FILE).exists() == (storage is None)


@pytest.mark.parametrize("torn", ['{"op_code": 4, "wor', '{"op_code": 4}'])
def test_a_journal_torn_by_a_kill_is_repaired(torn: str, tmp_path: Path) -> None:
    settings = config()
    propose_and_tell(make_study(settings, tmp_path), 3, settings)
    journal = tmp_path / STUDY_FILE
    whole = journal.read_bytes()
    with journal.open("a") as file:
        file.write(torn)
    journal.with_name(f"{STUDY_FILE}.lock").symlink_to(journal)
    study = make_study(settings, tmp_path)
    assert journal.read_bytes().startswith(whole)
    assert len(started_trials(study)) == 3
    propose_and_tell(study, 1, settings)
    assert len(open_study(settings, tmp_path).trials) == 4


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        ("nonsense", "nonsense: Optuna's study run cannot be opened"),
        ("sqlite:////nowhere/at/all.db", "cannot be opened"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_named(storage: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        make_study(config(storage=storage), tmp_path)


def test_a_study_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no sweep: it has no optuna\.journal"):
        open_study(config(), tmp_path)


def test_an_entry_of_a_remote_journal_is_put_into_json_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class NotThere:
        def read_text(self) -> str:
            raise FileNotFoundError

    dumped: list[dict[str, int]] = []
    written: list[str] = []
    dumps = json.dumps

    def counted(log: dict[str, int], **options: Any) -> str:
        dumped.append(log)
        return dumps(log, **options)

    monkeypatch.setattr(json, "dumps", counted)
    monkeypatch.setattr(study_module, "atomic_write_text", lambda _, text: written.append(text))
    file: Any = NotThere()
    journal = _RemoteJournal(file)
    for number in range(50):
        journal.append_logs([{"trial": number}, {"trial": -number}])
    assert dumped == [{"trial": sign * number} for number in range(50) for sign in (1, -1)]
    assert written[1] == '{"trial":0}\n{"trial":0}\n{"trial":1}\n{"trial":-1}\n'
    assert journal.read_logs(98) == [{"trial": 49}, {"trial": -49}]
