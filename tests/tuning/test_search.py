"""What Tune's search algorithm and schedulers are told, and tell the study; no Ray is started."""

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler

from raymed.config import Config
from raymed.tuning.search import StudySearch
from raymed.tuning.stopping import build_scheduler, replay
from raymed.tuning.study import make_study, objectives, open_study, started_trials
from raymed.tuning.trial import DECIDED, FAILURE, LOST, NUMBER, with_best

Rows = list[dict[str, float]]
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


def search(folder: Path, histories: dict[int, Rows], **tune: Any) -> StudySearch:
    config = Config().override({"tune.space": SPACE, **{f"tune.{k}": v for k, v in tune.items()}})
    reminded: dict[str, Rows] = {}
    made = StudySearch(
        make_study(config, folder),
        config.tune,
        3,
        lambda n: histories.get(n, []),
        reminded.__setitem__,
    )
    made.reminded = reminded  # type: ignore[attr-defined]
    return made


def recorder(one: StudySearch, trial_id: str, history: Rows, **extra: Any) -> None:
    """As Tune does: every row as a result, the last of them again at the end."""
    results = [with_best(history[:n], one.names) for n in range(1, len(history) + 1)]
    results = [*results[:-1], {**results[-1], **extra}] if results else [dict(extra)]
    for result in results[:-1]:
        one.on_trial_result(trial_id, result)
    one.on_trial_complete(trial_id, results[-1])


def test_states_and_values(tmp_path: Path) -> None:
    one = search(tmp_path, {})
    for name in "abcde":
        proposal = one.suggest(name)
        assert proposal == {
            "loss.tag": proposal["loss.tag"],
            NUMBER: "abcde".index(name),
            DECIDED: 0,
        }
    recorder(one, "a", rows(0.1, 0.5, 0.3))
    recorder(one, "b", rows(0.1, 0.05))
    recorder(one, "c", rows(0.1), **{FAILURE: "diverged"})
    recorder(one, "d", [], **{LOST: True})
    one.on_trial_complete("e", None, error=True)
    done, early, failed, lost, error = one.study.trials
    assert (done.state, done.value) == (TrialState.COMPLETE, 0.5)
    assert done.intermediate_values == {1: 0.1, 2: 0.5, 3: 0.5}
    # Optuna gives a pruned trial the value of its last epoch.
    assert (early.state, early.value) == (TrialState.PRUNED, 0.1)
    assert (failed.state, failed.user_attrs) == (TrialState.FAIL, {"reason": "diverged"})
    assert lost.state == error.state == TrialState.RUNNING


def test_of_epochs_of_one_score_the_lower_loss_gives_the_objectives() -> None:
    history = rows(0.0, 0.0, 0.0)
    for row, loss in zip(history, (5.0, 3.0, 4.0), strict=True):
        row["loss"] = loss
    found = with_best(history, ["seconds_per_report"])
    assert found["seconds_per_report_at_best"] == history[1]["seconds_per_report"]
    assert found["epoch"] == 3


def test_several_objectives_are_those_of_the_best_epoch(tmp_path: Path) -> None:
    one = search(tmp_path, {}, objectives=BOTH)
    for name in "ab":
        one.suggest(name)
    recorder(one, "a", rows(0.1, 0.5, 0.3))
    recorder(one, "b", rows(0.2, 0.1))
    # Optuna knows no pruned trial of several objectives: it is told what it had reached.
    assert [t.state for t in one.study.trials] == [TrialState.COMPLETE] * 2
    assert one.study.trials[0].values == [0.5, pytest.approx(2.05)]
    assert one.study.trials[1].values == [0.2, pytest.approx(1.02)]


def test_interrupted_trials_come_first_and_go_on(tmp_path: Path) -> None:
    first = search(tmp_path, {})
    proposals = [first.suggest(name) for name in "abc"]
    recorder(first, "b", rows(0.1, 0.2, 0.3))
    history = rows(0.1, 0.4)
    first.on_trial_result("a", with_best(history[:1], ["score"]))
    # Killed here: a has two epochs on the disk, of which the study knows one; c has none.
    again = search(tmp_path, {0: history})
    taken_up = [again.suggest(name) for name in "xy"]
    assert taken_up == [{**proposals[0], DECIDED: 1}, proposals[2]]
    assert again.reminded == {"x": history[:1], "y": []}  # type: ignore[attr-defined]
    assert again.suggest("z")[NUMBER] == 3
    recorder(again, "x", rows(0.1, 0.4, 0.2))
    trial = open_study(Config().override({"tune.space": SPACE}), tmp_path).trials[0]
    assert (trial.value, trial.intermediate_values) == (0.4, {1: 0.1, 2: 0.4, 3: 0.4})
    assert len(started_trials(again.study)) == 4


class Trial:
    def __init__(self, name: str) -> None:
        self.trial_id = name


class Controller:
    def get_live_trials(self) -> list[Trial]:
        return []


def decisions(scheduler: TrialScheduler, name: str, history: Rows, names: list[str]) -> list[str]:
    """What the scheduler answers to each epoch of a trial, until it stops it."""
    trial: Any = Trial(name)
    controller: Any = Controller()
    scheduler.on_trial_add(controller, trial)
    answers: list[str] = []
    for n in range(1, len(history) + 1):
        if "STOP" not in answers:
            result = with_best(history[:n], names)
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
    names = list(objectives(config.tune))
    histories = {f"{n}": rows(*(n / 10 + e / 100 for e in range(8))) for n in range(4)}
    bad = -0.5 if names[0] != "seconds_per_report" else 90.0
    worse = rows(*[bad] * 6)
    fresh, resumed = build_scheduler(config), build_scheduler(config)
    for name, history in histories.items():
        decisions(fresh, name, history, names)
        replay(resumed, name, history, names)
    # A trial of which two epochs were decided on goes on under the name that Tune gives it now.
    replay(resumed, "worse", worse[:1], names)
    expected = decisions(fresh, "worse", worse, names)
    assert decisions(resumed, "worse", worse, names)[1:] == expected[1:]
    assert ("STOP" in expected) == (stopping != "none")
    assert expected[0] == "CONTINUE"
