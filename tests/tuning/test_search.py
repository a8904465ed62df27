"""The search algorithm and the schedulers, called as Tune calls them; no Ray is started."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler

from raymed.config import Config
from raymed.sections import TrainingConfig
from raymed.training.observer import Row
from raymed.tuning.search import StudySearch
from raymed.tuning.stopping import build_scheduler, replay
from raymed.tuning.study import make_study, objectives, open_study, started_trials
from raymed.tuning.trial import OBJECTIVE, Outcome, Proposal

Rows = list[Row]
SPACE = {"loss.tag": {"uniform": [0, 1]}}
BOTH = {"cider": "max", "seconds_per_report": "min"}


def rows(*scores: float) -> Rows:
    return [
        {
            "epoch": n,
            "score": s,
            "cider": s,
            "loss": 9.0,
            "recall_5": 0.5,
            "seconds_per_report": s / 10 + n,
        }
        for n, s in enumerate(scores, start=1)
    ]


def search(
    folder: Path, histories: dict[int, Rows], patience: int | None = None, **tune: Any
) -> StudySearch:
    config = Config().override({"tune.space": SPACE, **{f"tune.{k}": v for k, v in tune.items()}})
    replayed: dict[str, Rows] = {}
    made = StudySearch(
        make_study(config, folder),
        config.tune,
        TrainingConfig(epochs=3, patience=patience),
        lambda n: histories.get(n, []),
        replayed.__setitem__,
    )
    made.replayed = replayed  # type: ignore[attr-defined]
    return made


def suggest(one: StudySearch, trial_id: str) -> Proposal:
    config: Any = one.suggest(trial_id)
    return Proposal.from_config(config)


def train(one: StudySearch, trial_id: str, history: Rows, **end: Any) -> None:
    """As Tune does: every row as a result, the last of them again at the end."""
    outcomes = [Outcome.of(history[:n]) for n in range(1, len(history))]
    for outcome in outcomes:
        one.on_trial_result(trial_id, outcome.to_result(one.objectives))
    one.on_trial_complete(trial_id, Outcome.of(history, **end).to_result(one.objectives))


def test_states_and_values(tmp_path: Path) -> None:
    one = search(tmp_path, {})
    for name in "abcde":
        proposal = suggest(one, name)
        assert list(proposal.values) == ["loss.tag"]
        assert (proposal.number, proposal.decided) == ("abcde".index(name), 0)
    train(one, "a", rows(0.1, 0.5, 0.3))
    train(one, "b", rows(0.1, 0.05))
    train(one, "c", rows(0.1), failure="diverged")
    train(one, "d", [], queue_lost=True)
    one.on_trial_complete("e", None, error=True)
    done, early, failed, lost, error = one.study.trials
    assert (done.state, done.value) == (TrialState.COMPLETE, 0.5)
    assert done.intermediate_values == {1: 0.1, 2: 0.5, 3: 0.5}
    # Optuna gives a pruned trial the value of its last epoch.
    assert (early.state, early.value) == (TrialState.PRUNED, 0.1)
    assert (failed.state, failed.user_attrs) == (TrialState.FAIL, {"reason": "diverged"})
    assert lost.state == error.state == TrialState.RUNNING


@pytest.mark.parametrize("tune", [{}, {"objectives": BOTH}])
def test_a_trial_that_patience_ends_is_complete(tmp_path: Path, tune: dict[str, Any]) -> None:
    one = search(tmp_path, {}, patience=1, **tune)
    for name in "ab":
        suggest(one, name)
    train(one, "a", rows(0.5, 0.3))
    train(one, "b", rows(0.1, 0.3))
    ended, stopped = one.study.trials
    assert (ended.state, ended.values[0]) == (TrialState.COMPLETE, 0.5)
    assert stopped.state == (TrialState.COMPLETE if tune else TrialState.PRUNED)


def test_of_epochs_of_one_score_the_lower_loss_gives_the_objectives() -> None:
    history = rows(0.0, 0.0, 0.0)
    for row, loss in zip(history, (5.0, 3.0, 4.0), strict=True):
        row["loss"] = loss
    found = Outcome.of(history)
    assert found.best == history[1]
    assert found.epoch == 3
    result = found.to_result({"seconds_per_report": "min", "score": "max"})
    assert result[OBJECTIVE] == history[1]["seconds_per_report"]


@pytest.mark.parametrize(("mode", "worst"), [("max", -math.inf), ("min", math.inf)])
def test_before_the_first_epoch_a_result_is_the_worst(mode: str, worst: float) -> None:
    outcome = Outcome.of([], failure="diverged")
    result = outcome.to_result({"score": mode})
    assert (result["epoch"], result[OBJECTIVE]) == (0, worst)
    assert Outcome.from_result(result) == outcome
    trained = Outcome.of(rows(0.5, 0.25), queue_lost=True)
    assert Outcome.from_result(trained.to_result({"score": mode}, "a/b")) == trained


def test_several_objectives_are_those_of_the_best_epoch(tmp_path: Path) -> None:
    one = search(tmp_path, {}, objectives=BOTH)
    for name in "ab":
        suggest(one, name)
    train(one, "a", rows(0.1, 0.5, 0.3))
    train(one, "b", rows(0.2, 0.1))
    # Optuna knows no pruned trial of several objectives: it is told what it had reached.
    assert [t.state for t in one.study.trials] == [TrialState.COMPLETE] * 2
    assert one.study.trials[0].values == [0.5, pytest.approx(2.05)]
    assert one.study.trials[1].values == [0.2, pytest.approx(1.02)]


def test_interrupted_trials_come_first_and_are_resumed(tmp_path: Path) -> None:
    first = search(tmp_path, {})
    proposals = [suggest(first, name) for name in "abc"]
    train(first, "b", rows(0.1, 0.2, 0.3))
    history = rows(0.1, 0.4)
    first.on_trial_result("a", Outcome.of(history[:1]).to_result({"score": "max"}))
    # Killed here: a has two epochs on the disk, of which the study knows one; c has none.
    again = search(tmp_path, {0: history})
    resumed = [suggest(again, name) for name in "xy"]
    assert resumed == [replace(proposals[0], decided=1), proposals[2]]
    assert again.replayed == {"x": history[:1], "y": []}  # type: ignore[attr-defined]
    assert suggest(again, "z").number == 3
    train(again, "x", rows(0.1, 0.4, 0.2))
    trial = open_study(Config().override({"tune.space": SPACE}), tmp_path).trials[0]
    assert (trial.value, trial.intermediate_values) == (0.4, {1: 0.1, 2: 0.4, 3: 0.4})
    assert len(started_trials(again.study)) == 4


def test_an_epoch_that_the_study_did_not_hear_of_is_reported_on_resuming(tmp_path: Path) -> None:
    first = search(tmp_path, {})
    suggest(first, "a")
    history = rows(0.1, 0.4, 0.2)
    first.on_trial_result("a", Outcome.of(history[:1]).to_result({"score": "max"}))
    # Killed while the trial trained its third epoch and the result of the second was on its way.
    again = search(tmp_path, {0: history})
    assert suggest(again, "x").decided == 2
    assert again.study.trials[0].intermediate_values == {1: 0.1, 2: 0.4}


class Trial:
    def __init__(self, name: str) -> None:
        self.trial_id = name


class Controller:
    def get_live_trials(self) -> list[Trial]:
        return []


def decisions(
    scheduler: TrialScheduler, name: str, history: Rows, wanted: dict[str, str]
) -> list[str]:
    """What the scheduler answers to each epoch of a trial, until it stops it."""
    trial: Any = Trial(name)
    controller: Any = Controller()
    scheduler.on_trial_add(controller, trial)
    answers: list[str] = []
    for n in range(1, len(history) + 1):
        if "STOP" not in answers:
            result = Outcome.of(history[:n]).to_result(wanted)
            answers.append(scheduler.on_trial_result(controller, trial, result))
    return answers


@pytest.mark.parametrize("stopping", ["asha", "median", "none"])
@pytest.mark.parametrize("chosen", [{}, BOTH, {"seconds_per_report": "min"}])
def test_trials_of_an_earlier_start_count(stopping: str, chosen: dict[str, str]) -> None:
    config = Config().override(
        {
            "tune.stopping": stopping,
            "tune.objectives": chosen,
            "tune.grace_epochs": 2,
            "tune.reduction_factor": 2,
            "training.epochs": 8,
        }
    )
    wanted = objectives(config.tune)
    histories = {f"{n}": rows(*(n / 10 + e / 100 for e in range(8))) for n in range(4)}
    bad = -0.5 if "score" in wanted or "cider" in wanted else 90.0
    worse = rows(*[bad] * 6)
    fresh, resumed = build_scheduler(config), build_scheduler(config)
    for name, history in histories.items():
        decisions(fresh, name, history, wanted)
        replay(resumed, name, history, wanted)
    # A trial of which two epochs were decided on goes on under the name that Tune gives it now.
    replay(resumed, "worse", worse[:1], wanted)
    expected = decisions(fresh, "worse", worse, wanted)
    assert decisions(resumed, "worse", worse, wanted)[1:] == expected[1:]
    assert ("STOP" in expected) == (stopping != "none")
    assert expected[0] == "CONTINUE"
