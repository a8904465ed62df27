"""Every system under CUDA's own autocast rules, on tensors that say they are on a GPU."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from raymed.config import Config
from raymed.data.batches import Batch, TokenisedSplit
from raymed.data.dataset import PreparedDataset
from raymed.data.vocabulary import Vocabulary
from raymed.evaluation import evaluate
from raymed.generation import generate
from raymed.model.encoder import build_encoder
from raymed.model.system import System
from raymed.model.systems import SYSTEMS, build_system
from raymed.prediction import predict_rows
from raymed.predictions_file import PREDICTIONS_FILE
from raymed.sections import AugmentationConfig, GenerationConfig, ModelConfig
from raymed.training.augment import augment
from raymed.training.checkpoint import Checkpoint, Snapshot
from raymed.training.checkpoint_paths import checkpoint_name, checkpoints_of
from raymed.training.loss import LossTerms, loss_terms
from raymed.training.prefetch import TrainingBatch
from raymed.training.self_critical import SelfCritical
from raymed.training.validation import THRESHOLDS, validate
from raymed.training.worker import Worker
from tests.support.pretend_cuda import CUDA, pretending, waited_for

THERE = Worker(CUDA)


@pytest.fixture(autouse=True)
def _pretended() -> Iterator[None]:
    with pretending():
        yield


@pytest.fixture(params=SYSTEMS)
def config(request: pytest.FixtureRequest, tiny: Config) -> Config:
    return tiny.override(
        {
            "model.system": request.param,
            "training.precision": "bfloat16",
            "generation.max_sentences": 3,
            "generation.max_words": 6,
        }
    )


@pytest.fixture
def vocabulary(config: Config) -> Vocabulary:
    dataset = PreparedDataset.open(config.data.path)
    return Vocabulary.most_frequent(dataset.words, dataset.tags, config.data.vocabulary)


def untrained(config: ModelConfig, tags: int, words: int) -> System:
    """A system with weights so wide that its decisions are far from even."""
    torch.manual_seed(0)
    model = build_system(config, tags, words, build_encoder(config.encoder))
    for parameter in model.requires_grad_(False).parameters():
        if parameter.ndim > 1 and parameter.shape[0] < 1000:
            parameter.mul_(2)
    return model.move_to(CUDA, torch.bfloat16)


def five_images(config: Config, vocabulary: Vocabulary) -> tuple[TokenisedSplit, Batch]:
    """The training split, and a batch of its first five images."""
    split = PreparedDataset.open(config.data.path).split("train")
    tokenised = TokenisedSplit(split, vocabulary, 3, 6)
    rows = np.arange(5)
    return tokenised, tokenised.batch(rows, rows * 97, np.full(5, 0.2, np.float32))


def test_a_training_pass_waits_for_nothing_and_decides_in_float32(
    config: Config, vocabulary: Vocabulary
) -> None:
    _, batch = five_images(config, vocabulary)
    model = untrained(config.model, len(vocabulary.tags), len(vocabulary)).train()
    passages = model.passages(batch.reports).to(CUDA)
    batch = batch.to(CUDA)
    waited_for.clear()
    moving = AugmentationConfig(shift=0.1, rotation=5, scale=0.1, contrast=0.2)
    images = augment(batch.images, batch.seeds, moving)
    assert images.device == CUDA
    with model.precision_context():
        outputs = model(images, passages, batch.seeds)
        found = loss_terms(outputs, batch)
    total = (found.total(config.loss) * batch.weights).sum()
    assert waited_for == []
    assert total.device == CUDA
    types = {getattr(found, field.name).dtype for field in fields(LossTerms)}
    assert types == {torch.float32}
    assert outputs.tag_logits.dtype == torch.float32
    if outputs.stop_logits is not None:
        assert outputs.stop_logits.dtype == torch.float32
    # And autocast did have its way: words are written in bfloat16.
    if outputs.words is not None:
        assert outputs.words.logits.dtype == torch.bfloat16
    assert torch.isfinite(total.cpu())


def test_self_critical_training_waits_once_for_the_reports_to_be_scored(
    config: Config, vocabulary: Vocabulary
) -> None:
    tokenised, batch = five_images(config, vocabulary)
    model = untrained(config.model, len(vocabulary.tags), len(vocabulary)).train()
    if model.writer is None:
        return
    objective = SelfCritical(model, model, tokenised, config.generation)
    passages = model.passages(batch.reports).to(CUDA)
    batch = batch.to(CUDA)
    waited_for.clear()
    losses = objective(TrainingBatch(batch, passages))
    total = (losses.terms.total(config.loss) * batch.weights).sum()
    assert waited_for == ["_to_copy"]
    assert total.device == CUDA
    assert {getattr(losses.terms, f.name).dtype for f in fields(LossTerms)} == {torch.float32}
    assert torch.isfinite(total.cpu())


def test_validation_beam_search_evaluation_and_prediction_agree(
    config: Config, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    config = config.override({"generation.beam_width": 2, "tune.free_threshold": True})
    dataset = PreparedDataset.open(config.data.path)
    model = untrained(config.model, len(vocabulary.tags), len(vocabulary)).eval()
    validation = TokenisedSplit(dataset.split("val"), vocabulary, 3, 6)
    validated = validate(model, validation, config, THERE)
    path = checkpoints_of(tmp_path) / checkpoint_name(1)
    row = {"epoch": 1.0, "loss": 1.0, **validated.row}
    Checkpoint(
        config=validated.config,
        vocabulary=vocabulary,
        image_size=dataset.info.image_size,
        content_hash=dataset.info.content_hash,
        history=[row],
        curve=validated.curve,
        path=path,
    ).save(Snapshot.take(model, torch.optim.SGD([torch.zeros(1)])), keep=2)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.precision == torch.bfloat16
    evaluation = evaluate(checkpoint, checkpoint.config, "val", tmp_path)
    scores = evaluation.rows[config.model.system]
    assert scores["recall_5"] == pytest.approx(row["recall_5"])
    if model.writer is None:
        return
    assert scores["cider"] == pytest.approx(row["cider"])
    written = pq.read_table(tmp_path / PREDICTIONS_FILE)["sentences"].to_pylist()
    rows = list(range(len(validation)))
    predicted = predict_rows(checkpoint, checkpoint.config, validation.split, rows, tmp_path)
    assert [prediction.report.sentences for prediction in predicted] == written


def test_a_report_ends_where_it_was_decided_in_float32(tiny: Config) -> None:
    """Near a threshold p(STOP) of float32 and of bfloat16 lie on two sides of it."""
    config = tiny.model.model_copy(update={"system": "co_attention"})
    model = untrained(config, 20, 30).eval()
    images = torch.randint(0, 256, (70, 32, 32), generator=torch.Generator().manual_seed(1))
    images = images.to(torch.uint8).to(CUDA)
    for threshold in THRESHOLDS:
        settings = GenerationConfig(stop_threshold=threshold, max_sentences=6, max_words=3)
        generated = generate(model, images, settings)
        assert generated.lengths(threshold) == [len(report) for report in generated.sentences]
    # The very numbers that lie between: a threshold at each image's own p(STOP).
    assert generated.p_stop is not None
    assert generated.p_stop.dtype == torch.float32
    longest = generate(model, images, settings.model_copy(update={"stop_threshold": 1.0}))
    assert longest.p_stop is not None
    for threshold in longest.p_stop[:, 0].tolist():
        lengths = longest.lengths(threshold)
        again = generate(model, images, settings.model_copy(update={"stop_threshold": threshold}))
        assert [len(report) for report in again.sentences] == lengths
