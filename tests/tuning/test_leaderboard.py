import random
from pathlib import Path
from typing import Any

import optuna
import pyarrow.parquet as pq
import pytest
from optuna.trial import TrialState
from rich.console import Console

from raymed.config import Config
from raymed.training.log import write_metrics
from raymed.training.observer import Row
from raymed.tuning.leaderboard import leaderboard_table, ranked_trials, write_leaderboard
from raymed.tuning.space import propose
from raymed.tuning.study import REASON, make_study, objectives

SPACE = {"loss.attention": {"uniform": [0.01, 1], "or": 0}, "model.top_tags": {"integer": [2, 6]}}
CIDER = {
    0: [0.1, 0.5, 0.3],
    1: [0.2],
    2: [],
    3: [0.4, 0.6],
    4: [0.0, 0.0, 0.0],
}
"""Validation CIDEr of each trial's epochs."""
STATES = {
    0: TrialState.COMPLETE,
    1: TrialState.PRUNED,
    2: TrialState.FAIL,
    3: None,  # was running when its sweep was killed
    4: TrialState.COMPLETE,
}


def row(epoch: int, cider: float) -> Row:
    return {
        "epoch": float(epoch),
        "loss": 9.0,
        "score": cider,
        "cider": cider,
        "recall_5": 1 - cider,
        "seconds_per_report": cider / 10,
        "seconds": 2.0,
    }


def swept(folder: Path, **tune: Any) -> tuple[optuna.Study, Config]:
    """A sweep's folder as `run_sweep` leaves it, with trials that are made up."""
    config = Config().override(
        {
            "tune.space": SPACE,
            "training.epochs": 3,
            **{f"tune.{key}": value for key, value in tune.items()},
        }
    )
    study = make_study(config, folder)
    several = len(config.tune.objectives) > 1
    for number, ciders in CIDER.items():
        trial = study.ask()
        propose(trial, config.tune.space)
        run = folder / "trials" / f"trial-00{number}"
        run.mkdir(parents=True)
        history = [row(epoch, cider) for epoch, cider in enumerate(ciders, start=1)]
        if history:
            write_metrics(run / "metrics.csv", history)
        if STATES[number] == TrialState.FAIL:
            trial.set_user_attr(REASON, "diverged [/] at epoch 1")
            study.tell(trial, state=TrialState.FAIL)
        elif STATES[number] is not None:
            best = row(1, max(ciders))
            values = [best[metric] for metric in objectives(config.tune)]
            pruned = STATES[number] == TrialState.PRUNED and not several
            study.tell(trial, None if pruned else values, TrialState.PRUNED if pruned else None)
    return study, config


def test_the_best_stands_first_and_each_trial_once(tmp_path: Path) -> None:
    study, config = swept(tmp_path)
    results = ranked_trials(study, config, tmp_path)
    # By the highest of each; trial 4 has 0, which is more than none.
    assert [r.trial for r in results] == [f"trial-00{n}" for n in (3, 0, 1, 4, 2)]
    assert [r.score for r in results] == [0.6, 0.5, 0.2, 0.0, None]
    assert [r.state for r in results] == [
        "unfinished",
        "completed",
        "stopped",
        "completed",
        "failed",
    ]
    assert [r.seconds for r in results] == [4.0, 6.0, 2.0, 6.0, 0]
    for result in results:
        params = study.trials[int(result.trial[-3:])].params
        off = params["loss.attention = 0"]
        expected = {"loss.attention": 0 if off else params["loss.attention"]}
        assert result.values == expected | {"model.top_tags": params["model.top_tags"]}


def test_a_trial_that_patience_ended_is_completed(tmp_path: Path) -> None:
    study, config = swept(tmp_path, objectives={"cider": "max", "seconds_per_report": "min"})
    for patience, expected in ((2, "stopped"), (1, "completed")):
        config = config.override({"training.epochs": 4, "training.patience": patience})
        states = {one.trial: one.state for one in ranked_trials(study, config, tmp_path)}
        # Best in the second of three epochs.
        assert states["trial-000"] == expected
        # Three epochs of equal score and loss: the first is the best.
        assert states["trial-004"] == "completed"
        assert states["trial-001"] == "stopped"


def test_table_file_has_a_row_per_trial_in_order(tmp_path: Path) -> None:
    study, config = swept(tmp_path)
    results = ranked_trials(study, config, tmp_path)
    path = tmp_path / "leaderboard.parquet"
    write_leaderboard(path, results, config)
    rows = pq.read_table(path).to_pylist()
    assert [r["place"] for r in rows] == [1, 2, 3, 4, 5]
    assert rows[1] == {
        "place": 2,
        "trial": "trial-000",
        "state": "completed",
        "epochs": 3,
        "score": 0.5,
        "cider": 0.5,
        "recall_5": 0.5,
        "seconds_per_report": 0.05,
        "seconds": 6.0,
        "reason": "",
        **results[1].values,
    }
    assert rows[4]["score"] is None
    assert rows[4]["reason"] == "diverged [/] at epoch 1"


@pytest.mark.parametrize(
    ("objectives", "order", "front"),
    [
        # Whoever scores higher is slower, in these made-up trials: nobody dominates anybody.
        # Trial 3 is not at its end.
        ({"cider": "max", "seconds_per_report": "min"}, (3, 0, 1, 4), {0, 1, 4}),
        ({"seconds_per_report": "min", "cider": "max"}, (4, 1, 0, 3), {0, 1, 4}),
        ({"seconds_per_report": "max", "cider": "max"}, (3, 0, 1, 4), {0}),
        ({"recall_5": "max"}, (4, 1, 0, 3), {4}),
    ],
)
def test_objectives_rank_and_make_the_front(
    objectives: dict[str, str], order: tuple[int, ...], front: set[int], tmp_path: Path
) -> None:
    study, config = swept(tmp_path, objectives=objectives)
    results = ranked_trials(study, config, tmp_path)
    assert [int(r.trial[-1]) for r in results] == [*order, 2]
    assert {int(r.trial[-1]) for r in results if r.pareto} == front
    path = tmp_path / "leaderboard.parquet"
    write_leaderboard(path, results, config)
    rows = pq.read_table(path).to_pylist()
    if len(objectives) > 1:
        assert {r.trial: r.state for r in results}["trial-001"] == "stopped"
        assert [r["pareto"] for r in rows] == [r.pareto for r in results]
    else:
        assert "pareto" not in rows[0]


def test_table_on_the_terminal_shows_trials_and_baselines_in_order(tmp_path: Path) -> None:
    study, config = swept(tmp_path)
    console = Console(width=80, record=True, quiet=False)
    baselines = {
        "constant report": {"cider": 2.58, "recall_5": 0.21},
        "nearest image": {"cider": 5.05, "recall_5": 0.43},
    }
    results = ranked_trials(study, config, tmp_path)
    with console.capture() as captured:
        console.print(leaderboard_table(results, baselines))
    text = captured.get()
    places = [text.index(name) for name in (*(r.trial for r in results), *baselines)]
    assert places == sorted(places)
    (line,) = (line for line in text.splitlines() if line.startswith("trial-001"))
    assert line.split()[1:4] == ["0.200", "0.800", "1"]
    # One trial's part of the text ends where the next one's begins.
    for first, after, state in (
        ("trial-001", "trial-004", "[stopped]"),
        ("trial-003", "trial-000", "[unfinished]"),
        ("trial-002", "constant", "[failed]"),
    ):
        assert state in text[text.index(first) : text.index(after)]
    (line,) = (line for line in text.splitlines() if line.startswith("nearest image"))
    assert line.split()[2:] == ["5.050", "0.430"]
    assert "completed" not in text
    assert "Pareto" not in text
    assert "more" not in text
    with console.capture() as captured:
        console.print(leaderboard_table(results * 5, baselines))
    assert "… 5 more" in captured.get()
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    "chosen",
    [
        {"cider": "max", "seconds_per_report": "min"},
        {"cider": "max", "recall_5": "max", "seconds_per_report": "min"},
    ],
)
def test_the_front_is_what_comparing_all_pairs_gives(
    chosen: dict[str, str], tmp_path: Path
) -> None:
    chance = random.Random(len(chosen))
    points = [tuple(float(chance.randrange(6)) for _ in chosen) for _ in range(150)]
    config = Config().override({"tune.space": SPACE, "tune.objectives": chosen})
    study = make_study(config, tmp_path)
    for point in points:
        trial = study.ask()
        propose(trial, config.tune.space)
        study.tell(trial, list(point))
    signs = [1 if mode == "max" else -1 for mode in chosen.values()]

    def dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
        gains = [sign * (a - b) for sign, a, b in zip(signs, one, other, strict=True)]
        return min(gains) >= 0 and max(gains) > 0

    front = {p for p in points if not any(dominates(other, p) for other in points)}
    results = ranked_trials(study, config, tmp_path)
    assert [r.pareto for r in results] == [r.objectives in front for r in results]
