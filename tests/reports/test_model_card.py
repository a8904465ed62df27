"""A run's model card: what it states, against the run's own files."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from raymed.cli import main
from raymed.data.dataset import PreparedDataset
from raymed.launch.run import run_training
from raymed.notices import NOT_FOR_CLINICAL_USE
from raymed.reports.model_card import CARD_FILE, model_card, write_model_card
from raymed.training.checkpoint import Checkpoint


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be evaluated."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def metadata_of(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def table_of(card: str) -> dict[str, list[str]]:
    """The cells of the table of scores by the first of each line."""
    lines = card[card.index("## Scores") : card.index("## Limits")].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    return {first: cells for first, *cells in rows}


def test_a_finished_run_has_a_card_with_its_data_and_settings(trained, phantom):
    card = (trained / CARD_FILE).read_text()
    info = PreparedDataset.open(phantom).info
    checkpoint = Checkpoint.open(trained)
    assert metadata_of(card)["library_name"] == "raymed"
    assert metadata_of(card)["language"] == "en"
    assert NOT_FOR_CLINICAL_USE in card
    assert info.content_hash in card
    counts = ", ".join(f"{count} {split}" for split, count in info.counts.items())
    assert f"{counts} images" in card
    assert f"after epoch {checkpoint.epoch} of at most 12" in card
    assert "| `training.learning_rate` | `0.01` |" in card
    assert "training.warmup" not in card, "a default"
    assert f"vocabulary of {len(checkpoint.vocabulary.words)} words" in card
    assert "32 x 32 pixels" in card
    assert "Not evaluated yet" in card


@pytest.mark.slow
def test_an_evaluation_adds_its_scores_beside_the_baselines(run, capsys):
    assert main(["evaluate", str(run), "split=val"]) == 0
    assert f"model card: {run / CARD_FILE}" in capsys.readouterr().out
    scores = json.loads((run / "val" / "scores.json").read_text())
    card = (run / CARD_FILE).read_text()
    table = table_of(card)
    assert table[""] == list(scores["rows"])
    assert {"constant report", "nearest image"} < set(table[""])
    low, high = scores["intervals"]["co_attention"]["bleu_4"]
    value = scores["rows"]["co_attention"]["bleu_4"]
    assert table["BLEU-4"][0] == f"{value:.3f} ({low:.3f} to {high:.3f})"
    distinct = [f"{row['distinct']:.0f}" for row in scores["rows"].values()]
    assert [cell.split()[0] for cell in table["distinct reports"]] == distinct
    assert f"The {scores['images']} references are {scores['truth_distinct']} distinct" in card
    assert "Not evaluated yet" not in card
    # Scores of other weights are not the model's.
    scores["made_from"]["checkpoint"]["weights"] = "0" * 64
    (run / "val" / "scores.json").write_text(json.dumps(scores))
    assert "Not evaluated yet" in model_card(Checkpoint.open(run))


def test_a_fine_tuned_run_names_its_parent(learner, trained, tmp_path):
    settings = {
        "training.start_from": str(trained),
        "training.epochs": 1,
        "run.folder": str(tmp_path),
    }
    run_training(learner.override(settings), Console(quiet=True))
    card = (tmp_path / "run" / CARD_FILE).read_text()
    parent = Checkpoint.open(trained)
    assert f"`{trained}` (`training.start_from`): epoch {parent.epoch}, trained on" in card
    assert "fine-tuned" in metadata_of(card)["tags"]


def test_without_the_dataset_the_card_says_so(trained, tmp_path):
    checkpoint = Checkpoint.open(trained)
    elsewhere = checkpoint.config.override({"data.path": str(tmp_path / "nowhere")})
    object.__setattr__(checkpoint, "config", elsewhere)
    card = model_card(checkpoint)
    assert checkpoint.content_hash in card
    assert "the dataset was not at hand" in card
    assert "language" not in metadata_of(card)


def test_a_card_that_cannot_be_written_is_a_warning(run):
    (run / CARD_FILE).unlink()
    (run / CARD_FILE).mkdir()
    (run / CARD_FILE / "file").touch()
    warnings: list[str] = []
    assert write_model_card(run, warnings.append) is None
    assert len(warnings) == 1
    assert str(run / CARD_FILE) in warnings[0]
