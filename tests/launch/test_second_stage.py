"""`raymed finetune RUN objective=cider`."""

import shutil
from pathlib import Path

import pytest

from raymed.cli import main
from raymed.errors import UsageError
from raymed.launch.second_stage import second_stage
from raymed.run_folder import RunFolder
from raymed.training.checkpoint import Checkpoint
from raymed.training.setup import check


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "runs" / "first"))


def test_a_run_is_trained_for_its_score_beside_it(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["finetune", str(run), "objective=cider", "training.epochs=1"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "training.learning_rate=5e-05, training.encoder_learning_rate=1e-06" in out
    assert "reward " in out
    end = Checkpoint.open(run.parent / "first-cider")
    assert end.config.training.objective == "cider"
    assert end.config.training.start_from == str(run)
    assert (end.config.training.epochs, end.config.loss.word, end.config.loss.sent) == (1, 1, 1)
    # What the second stage does not set is the first one's.
    first = Checkpoint.open(run).config
    assert end.config.training.batch_size == first.training.batch_size
    assert end.config.model == first.model
    assert {"reward", "reward_greedy"} < end.history[-1].keys()
    assert main(arguments) == 0
    assert "already trained for 1 epochs" in capsys.readouterr().out


def test_a_run_with_label_smoothing_continues_without(run: Path) -> None:
    file = run / "config.yaml"
    file.write_text(file.read_text().replace("label_smoothing: 0.0", "label_smoothing: 0.1"))
    assert RunFolder(run).config().loss.label_smoothing == 0.1
    config = second_stage(RunFolder(run), [])
    assert config.loss.label_smoothing == 0
    check(config)


def test_settings_override_those_of_the_second_stage(run: Path) -> None:
    config = second_stage(RunFolder(run), ["training.learning_rate=1e-3", "run.name=other"])
    assert (config.training.learning_rate, config.run.name) == (1e-3, "other")
    assert config.training.epochs == 5
    assert config.run.folder == str(run.parent)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "is a run, which `raymed finetune` trains on for its score: add objective=cider"),
        (["objective=bleu"], "objective: must be likelihood or cider, not 'bleu'"),
        (["objective=cider", "top=2"], "only a sweep has several"),
        (["objective=cider", "model.system=vgg19_tags"], "model.system=vgg19_tags writes none"),
    ],
)
def test_mistakes(
    run: Path, capsys: pytest.CaptureFixture[str], settings: list[str], message: str
) -> None:
    assert main(["finetune", str(run), *settings]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a run folder: it has no config\.yaml"):
        second_stage(RunFolder(tmp_path), [])
