"""Each system is trained, scored and used for prediction by the same functions."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console

from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.evaluation import evaluate
from raymed.generation import generate
from raymed.launch.run import run_training
from raymed.metrics.cider import cider
from raymed.metrics.tags import recall_at
from raymed.model.systems import SYSTEMS
from raymed.prediction import predict
from raymed.predictions_file import BASELINES, PREDICTIONS_FILE
from raymed.training.checkpoint import Checkpoint
from raymed.training.log import METRICS_FILE, read_metrics


@pytest.fixture(
    scope="module", params=[(s, p) for p in ("float32", "bfloat16") for s in SYSTEMS], ids="-".join
)
def checkpoint(
    request: pytest.FixtureRequest, tiny: Config, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    """Of a run of one epoch."""
    system, precision = request.param
    changes = {
        "model.system": system,
        "training.precision": precision,
        "run.folder": str(tmp_path_factory.mktemp(system)),
        "training.epochs": 1,
        "training.batch_size": 2,
        "training.learning_rate": 0.01,
        "generation.max_sentences": 3,
        "generation.max_words": 6,
    }
    return run_training(tiny.override(changes), Console(quiet=True))


def test_the_run_is_scored_by_what_its_model_writes(checkpoint: Checkpoint) -> None:
    folder, config = checkpoint.path.parents[1], checkpoint.config
    (row,) = read_metrics(folder / METRICS_FILE)
    assert row == checkpoint.history[0]
    assert row["loss"] > 0
    # What a system has not costs nothing.
    plans = config.model.system in ("co_attention", "visual_only", "semantic_only", "no_attention")
    attends = config.model.system not in (
        "no_attention",
        "cnn_rnn",
        "lrcn",
        "transformer",
        "vgg19_tags",
    )
    writes = config.model.system != "vgg19_tags"
    found = [row[f"loss_{name}"] > 0 for name in ("tag", "sent", "word", "attention")]
    assert found == [True, plans, writes, attends]

    model = Checkpoint.open(folder).build_model()
    split = PreparedDataset.open(config.data.path).split("val")
    images = torch.from_numpy(split.pixels(np.arange(len(split))))
    reports = generate(model, images, config.generation).reports(checkpoint.vocabulary)
    ids = checkpoint.vocabulary.tag_ids
    ranked = np.array([[ids[tag] for tag, _ in report.tags] for report in reports])
    recall = recall_at(5, ranked, [{ids[tag] for tag in tags} for tags in split.tags])
    assert row["recall_5"] == pytest.approx(recall)
    if writes:
        score = cider(split.references, [report.text for report in reports])
        assert row["score"] == row["cider"] == pytest.approx(score)
    else:
        assert "cider" not in row
        assert row["score"] == row["recall_5"]


def test_it_is_evaluated(checkpoint: Checkpoint, tmp_path: Path) -> None:
    system, (row,) = checkpoint.config.model.system, checkpoint.history
    evaluation = evaluate(checkpoint, checkpoint.config, "val", tmp_path)
    assert list(evaluation.rows) == [system, *BASELINES]
    scores = evaluation.rows[system]
    assert scores["recall_5"] == pytest.approx(row["recall_5"])
    predictions = pq.read_table(tmp_path / PREDICTIONS_FILE).to_pydict()
    if system == "vgg19_tags":
        assert (scores["cider"], scores["bleu_1"], scores["distinct"], scores["normality"]) == (
            None,
        ) * 4
        assert not {"report", "sentences"} & predictions.keys()
    else:
        assert scores["cider"] == pytest.approx(row["cider"])
        assert scores["distinct"] == row["distinct"] == len(set(predictions["report"]))
    console = Console(width=100)
    with console.capture() as captured:
        console.print(evaluation.table())
    assert system in captured.get()


def test_it_predicts(checkpoint: Checkpoint, tmp_path: Path) -> None:
    config = checkpoint.config
    (pixels,) = PreparedDataset.open(config.data.path).split("test").pixels(np.array([0]))
    Image.fromarray(pixels).save(tmp_path / "film.png")
    (prediction,) = predict(checkpoint, config, [str(tmp_path / "film.png")], tmp_path)
    model = checkpoint.build_model()
    generated = generate(model, torch.from_numpy(pixels)[None], config.generation)
    assert prediction.report == generated.reports(checkpoint.vocabulary)[0]
    assert bool(prediction.report.sentences) == (config.model.system != "vgg19_tags")
    with Image.open(prediction.figure) as figure:
        assert min(figure.size) > 100
