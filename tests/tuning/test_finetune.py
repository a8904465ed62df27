"""Fine-tuning a sweep's best trials, whose encoder was frozen."""

import os
from pathlib import Path

import optuna
import pytest
import torch
from rich.console import Console

from raymed.config import SEARCH_DEFAULTS, Config
from raymed.errors import UsageError
from raymed.launch.run import run_training
from raymed.training.checkpoint import Checkpoint
from raymed.training.log import METRICS_FILE, read_metrics
from raymed.tuning.finetune import fine_tune
from raymed.tuning.space import propose
from raymed.tuning.study import make_study

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def sweep(learner: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of three trials as `raymed tune` leaves it, trained without Ray; the last failed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    config = learner.override(
        {
            "run.folder": str(tmp_path_factory.mktemp("sweeps")),
            "run.name": "sweep",
            "model.train_encoder": "none",
            "training.epochs": 2,
            "launch.workers": 1,
            "tune.space": {"training.learning_rate": {"choice": [1e-5, 0.01]}},
            "tune.points_to_evaluate": [{"training.learning_rate": rate} for rate in (1e-5, 0.01)],
        }
    )
    folder = Path(config.run.folder) / "sweep"
    folder.mkdir()
    (folder / "sweep.yaml").write_text(config.to_yaml())
    study = make_study(config, folder)
    for number in range(3):
        trial = study.ask()
        values = propose(trial, config.tune.space)
        if number == 2:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        run = {"run.folder": str(folder / "trials"), "run.name": f"trial-00{number}"}
        one = config.override({**values, **run, **SEARCH_DEFAULTS, "launch.workers": 0})
        study.tell(trial, run_training(one, QUIET).history[-1]["score"])
    return folder


@pytest.mark.ray
@pytest.mark.slow
def test_the_best_trials_are_fine_tuned_with_their_encoder(sweep: Path, ray: None) -> None:  # noqa: ARG001
    before = {file: file.stat().st_mtime_ns for file in (sweep / "trials").rglob("*")}
    settings = [
        "training.epochs=2",
        "training.encoder_learning_rate=1e-4",
        "launch.workers=1",
        "tune.groups=1",
    ]
    done = fine_tune(sweep, 5, settings, QUIET)
    reached = {
        folder.name: max(row["score"] for row in read_metrics(folder / METRICS_FILE))
        for folder in (sweep / "trials").iterdir()
    }
    ranked = sorted(reached, key=lambda trial: (-reached[trial], trial))
    assert [one.trial.trial for one in done] == ranked
    assert len(ranked) == 2
    for one in done:
        start, end = (
            Checkpoint.open(sweep / "trials" / one.trial.trial),
            Checkpoint.open(one.folder),
        )
        assert one.folder == sweep / "fine-tuned" / one.trial.trial
        assert end.config.training.learning_rate == start.config.training.learning_rate
        assert end.config.training.epochs == 2
        assert end.config.training.start_from == str(sweep / "trials" / one.trial.trial)
        assert one.score == max(row["score"] for row in end.history)
        # The encoder has learned, starting from the frozen one.
        was, became = (each.build_model().encoder.state_dict() for each in (start, end))
        apart = [float((was[name] - became[name]).abs().max()) for name in was]
        assert 0 < max(apart) < 0.1
    assert {file: file.stat().st_mtime_ns for file in (sweep / "trials").rglob("*")} == before

    # The same command again has nothing left to do, and other settings are refused.
    with open(os.devnull, "w") as nowhere:
        console = Console(file=nowhere, record=True)
        assert [one.score for one in fine_tune(sweep, 2, settings, console)] == [
            one.score for one in done
        ]
    assert "to train" not in console.export_text()
    with pytest.raises(UsageError, match=r"training\.batch_size: 4 -> 5"):
        fine_tune(sweep, 1, [*settings, "training.batch_size=5"], QUIET)


def test_what_cannot_be_fine_tuned_is_refused(sweep: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a sweep folder: it has no sweep\.yaml"):
        fine_tune(tmp_path, 1, [], QUIET)
    with pytest.raises(UsageError, match=r"training\.epochz: no such key"):
        fine_tune(sweep, 1, ["training.epochz=1"], QUIET)
    empty = tmp_path / "empty"
    empty.mkdir()
    text = (sweep / "sweep.yaml").read_text()
    (empty / "sweep.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"holds no sweep: it has no optuna\.journal"):
        fine_tune(empty, 1, [], QUIET)
    (empty / "optuna.journal").write_bytes((sweep / "optuna.journal").read_bytes())
    with pytest.raises(UsageError, match=r"no trial has a score yet"):
        fine_tune(empty, 1, [], QUIET)


def test_weights_are_tensors_of_the_trial(sweep: Path) -> None:
    """The fixture's frozen encoder is a random one: both trials drew the same."""
    first, second = (Checkpoint.open(sweep / f"trials/trial-00{n}").build_model() for n in (0, 1))
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.encoder.parameters(), second.encoder.parameters(), strict=True)
    )
