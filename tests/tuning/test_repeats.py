"""No two trials of a sweep have the same values, and a sweep ends where all were tried."""

import io
from itertools import product
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher
from rich.console import Console

from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.launch.run import run_training
from raymed.reports.sweep_page import _facts
from raymed.sections import TrainingConfig
from raymed.tuning.leaderboard import ranked_trials
from raymed.tuning.page import read_sweep
from raymed.tuning.search import MAX_REPEATS, StudySearch
from raymed.tuning.space import canonical, count_points, draw_untried, propose, to_params
from raymed.tuning.study import (
    CONTENT,
    REPEATED,
    make_study,
    open_study,
    proposed_trials,
    started_trials,
)
from raymed.tuning.sweep import run_sweep
from raymed.tuning.trial import Outcome, Proposal

SPACE: dict[str, Any] = {
    "training.learning_rate": {"choice": [1e-3, 1e29]},
    "model.top_tags": {"integer": [2, 4]},
    "loss.attention": {"choice": [1, 2, 2.0], "or": 0, "when": {"model.top_tags": [3]}},
}
POINTS = [
    (rate, tags, attention)
    for rate, tags in product([1e-3, 1e29], [2, 3, 4])
    for attention in ([0, 1, 2] if tags == 3 else [None])
]
"""All ten points of the space, by hand."""


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def config(folder: Path, **tune: Any) -> Config:
    settings = {"tune.space": SPACE, "tune.trials": 30, "tune.startup_trials": 2}
    return Config().override(
        {"run.folder": str(folder.parent), "run.name": folder.name, "training.epochs": 1}
        | settings
        | {f"tune.{key}": value for key, value in tune.items()}
    )


def search(settings: Config, folder: Path) -> StudySearch:
    def none(*_: Any) -> list[Any]:
        return []

    return StudySearch(
        make_study(settings, folder), settings.tune, TrainingConfig(epochs=1), none, none
    )


def suggest(one: StudySearch, name: str) -> Proposal | None:
    """The next proposal; None at the end of the search."""
    config: Any = one.suggest(name)
    return None if config == Searcher.FINISHED else Proposal.from_config(config)


def suggest_one(one: StudySearch, name: str) -> Proposal:
    proposal = suggest(one, name)
    assert proposal is not None
    return proposal


def key(proposal: Proposal) -> tuple[Any, ...]:
    return tuple(proposal.values.get(name) for name in SPACE)


def train(one: StudySearch, name: str, proposal: Proposal) -> None:
    """As if it had been trained: the higher rate diverges."""
    if proposal.values["training.learning_rate"] > 1:
        outcome = Outcome.of([], failure="diverged")
    else:
        score = proposal.values["model.top_tags"] / 10
        outcome = Outcome.of([{"epoch": 1, "loss": 1.0, "score": score}])
    one.on_trial_complete(name, outcome.to_result(one.objectives))


@pytest.mark.parametrize("sampler", ["tpe", "gp", "qmc", "random", "cma_es"])
@pytest.mark.parametrize("groups", [1, 3])
def test_all_points_are_tried_once_and_then_it_ends(
    sampler: str, groups: int, tmp_path: Path
) -> None:
    settings = config(tmp_path, sampler=sampler)
    one = search(settings, tmp_path)
    proposals: list[Proposal] = []
    running: list[tuple[str, Proposal]] = []
    while (proposal := suggest(one, name := f"t{len(proposals)}")) is not None:
        proposals.append(proposal)
        running.append((name, proposal))
        if len(running) == groups:
            train(one, *running.pop(0))
    for left in running:
        train(one, *left)
    assert len(proposals) == len(POINTS) == 10
    assert set(map(key, proposals)) == set(POINTS)
    # Study and leaderboard have each of them once; what was repeated is told apart.
    trials = started_trials(one.study)
    assert [trial.number for trial in trials] == [p.number for p in proposals]
    assert len(ranked_trials(one.study, settings, tmp_path)) == len(POINTS)
    for trial in proposed_trials(one.study):
        if (first := trial.user_attrs.get(REPEATED)) is not None:
            assert trial.state == TrialState.FAIL
            assert first in {f"trial-{p.number:03d}" for p in proposals if p.number < trial.number}
    assert len(proposed_trials(one.study)) <= len(POINTS) * (MAX_REPEATS + 1) + MAX_REPEATS


def test_what_is_proposed_does_not_depend_on_interruptions(tmp_path: Path) -> None:
    seen = []
    for name, restarts in (("whole", False), ("torn", True)):
        (tmp_path / name).mkdir()
        settings = config(tmp_path / name)
        one = search(settings, tmp_path / name)
        proposals = []
        for number in range(len(POINTS)):
            if restarts:
                one = search(settings, tmp_path / name)
            proposals.append(suggest_one(one, f"{number}"))
            train(one, f"{number}", proposals[-1])
        seen.append(proposals)
    assert seen[0] == seen[1]


def test_a_killed_repeat_is_not_trained_when_the_sweep_resumes(tmp_path: Path) -> None:
    settings = config(tmp_path, points_to_evaluate=[{"model.top_tags": 2}] * 2)
    one = search(settings, tmp_path)
    first = suggest_one(one, "a")
    train(one, "a", first)
    # Killed when it had asked for the values of the first one.
    one.study.enqueue_trial(to_params(first.values, settings.tune.space))
    torn = one.study.ask()
    assert propose(torn, settings.tune.space) == first.values
    again = search(settings, tmp_path)
    proposal = suggest_one(again, "b")
    assert proposal.values != first.values
    assert proposal.number > torn.number
    assert again.study.trials[torn.number].user_attrs == {REPEATED: "trial-000"}


def test_a_continuous_space_has_as_many_points_as_are_wanted(tmp_path: Path) -> None:
    space = {"loss.attention": {"uniform": [0.1, 1], "or": 0}}
    settings = config(tmp_path, space=space)
    assert count_points(settings.tune.space, 1000) == 1000
    one = search(settings, tmp_path)
    proposals = [suggest_one(one, f"{n}").values for n in range(12)]
    assert len({p["loss.attention"] for p in proposals}) == 12
    assert sum(p["loss.attention"] == 0 for p in proposals) == 1


def test_the_size_of_a_finite_space() -> None:
    space = Config().override({"tune.space": SPACE}).tune.space
    assert [count_points(space, most) for most in (3, 10, 11, 1000)] == [3, 10, 10, 10]
    huge = {f"loss.{name}": {"choice": [*range(1000)]} for name in ("tag", "sent", "word")}
    huge["model.top_tags"] = {"integer": [1, 10**9]}
    settings = Config().override({"tune.space": huge}).tune
    assert count_points(settings.space, 64) == 64
    assert draw_untried(settings.space, {}, (0, 1)) != draw_untried(settings.space, {}, (0, 2))
    tried = {
        canonical(dict(zip(SPACE, point, strict=True))) for point in POINTS if None not in point
    }
    tried |= {canonical(dict(zip(list(SPACE)[:2], point, strict=False))) for point in POINTS[:4]}
    left = draw_untried(space, tried, (0,))
    assert left is not None
    assert left["model.top_tags"] in (2, 4)
    assert canonical(left) not in tried


@pytest.mark.parametrize("trials", [1, 3, 30])
def test_trials_that_were_lowered_or_cannot_be_reached(
    tiny: Config, tmp_path: Path, trials: int
) -> None:
    """Nothing is left to train, so no Ray is started."""
    space = {"model.top_tags": {"choice": [2, 3, 4]}}
    settings = tiny.override(
        {
            "run.folder": str(tmp_path),
            "launch.workers": 1,
            "training.epochs": 1,
            "tune.space": space,
            "tune.trials": trials,
        }
    )
    folder = tmp_path / "run"
    (folder / "trials").mkdir(parents=True)
    (folder / "sweep.yaml").write_text(settings.to_yaml())
    study = make_study(settings, folder)
    study.set_user_attr(CONTENT, PreparedDataset.open(tiny.data.path).info.content_hash)
    for number in range(3):
        trial = study.ask()
        trial.suggest_categorical("model.top_tags", [2, 3, 4])
        run = {"run.folder": str(folder / "trials"), "run.name": f"trial-00{number}"}
        run_training(
            tiny.override({**run, "training.epochs": 1, "model.top_tags": number + 2}),
            Console(quiet=True),
        )
        study.tell(trial, 0.1)
    console = Console(file=io.StringIO(), width=200)
    run_sweep(settings, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "-" + str(3 - trials) + " " not in printed
    assert "interrupted" not in printed
    for number in range(3):
        assert f"trial-00{number}" in printed
    if trials == 1:
        assert "3 trials are already done; tune.trials is 1, so there are none to add" in printed
    if trials == 30:
        assert "tune.space has 3 different points, so there are 3 trials, not 30" in printed
        assert "3 of 3 trials are already done" in printed
    assert _facts(read_sweep(folder))["trials"] == "3 of 3: 3 completed"
    assert len(started_trials(open_study(settings, folder))) == 3
