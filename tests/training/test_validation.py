"""The free curve against generating again, at every stop threshold and every M."""

from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import safetensors.torch
import torch

from raymed.config import Config
from raymed.data.batches import TokenisedSplit
from raymed.data.dataset import PreparedDataset
from raymed.generation import generate
from raymed.metrics.cider import cider
from raymed.model.system import System
from raymed.model.systems import build_system
from raymed.training import validation
from raymed.training.checkpoint import MODEL_FILE, Checkpoint, latest
from raymed.training.checkpoint_paths import checkpoints_of
from raymed.training.loop import train
from raymed.training.observer import Row
from raymed.training.validation import THRESHOLDS, TOP_TAGS, Validation, validate
from raymed.training.worker import Worker
from tests.support.metric_rows import untimed
from tests.support.recording import Recorder

ALONE = Worker(torch.device("cpu"))
IMAGES = 8
FREE = {"tune.free_threshold": True, "tune.free_top_tags": True}


@pytest.fixture(scope="module")
def checkpoint(trained: Path) -> Checkpoint:
    """Of the last epoch, which writes reports that differ most."""
    last = latest(trained)
    assert last is not None
    return Checkpoint.open(last)


def validated(checkpoint: Checkpoint, model: System, config: Config, split: str) -> Validation:
    dataset = PreparedDataset.open(config.data.path)
    limits = config.generation.max_sentences, config.generation.max_words
    tokenised = TokenisedSplit(dataset.split(split), checkpoint.vocabulary, *limits)
    return validate(model, tokenised, config, ALONE)


def scored(checkpoint: Checkpoint, model: System, config: Config, split_name: str) -> float:
    """The CIDEr of generating with just these settings, all images at once."""
    split = PreparedDataset.open(config.data.path).split(split_name)
    count = config.data.validation_images or len(split)
    images = torch.from_numpy(split.pixels(np.arange(count)))
    reports = generate(model, images, config.generation).reports(checkpoint.vocabulary)
    return cider(split.references[:count], [report.text for report in reports])


@pytest.mark.parametrize("width", [1, 2])
def test_the_curve_equals_generating_again(checkpoint: Checkpoint, width: int) -> None:
    config = checkpoint.config.override(
        {
            "generation.beam_width": width,
            # Without it a beam prefers reports so short that none scores.
            "generation.length_penalty": 1.0,
            "data.validation_images": IMAGES,
            **FREE,
        }
    )
    # In float64, so that no rounding turns one word into another.
    model = checkpoint.build_model().double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = validated(checkpoint, model, config, "train")

    tags, words = len(checkpoint.vocabulary.tags), len(checkpoint.vocabulary)
    tops = sorted({top for top in TOP_TAGS if top <= tags} | {config.model.top_tags})
    points = [(point["stop_threshold"], point["top_tags"]) for point in found.curve]
    assert points == [(threshold, top) for top in tops for threshold in THRESHOLDS]
    for top in tops:
        other = checkpoint.config.model.model_copy(update={"top_tags": top})
        again = build_system(other, tags, words, checkpoint.build_model().encoder)
        again.double().load_state_dict(before)
        for point in found.curve:
            if point["top_tags"] == top and point["stop_threshold"] in (0.1, 0.25, 0.4, 0.85):
                own = {"generation.stop_threshold": point["stop_threshold"]}
                score = scored(checkpoint, again.eval(), config.override(own), "train")
                assert point["cider"] == pytest.approx(score, abs=1e-9)
    scores = [point["cider"] for point in found.curve]
    assert len({round(score, 6) for score in scores}) > 5
    assert found.row["score"] == found.row["cider"] == found.row["free_cider"] == max(scores)
    best = found.curve[scores.index(max(scores))]
    chosen = found.config.generation.stop_threshold, found.config.model.top_tags
    assert cider_at(found, *chosen) == best["cider"]
    assert (found.row["stop_threshold"], found.row["top_tags"]) == chosen
    # And the model is left as it was.
    assert scored(checkpoint, model, config, "train") == pytest.approx(
        cider_at(found, config.generation.stop_threshold, config.model.top_tags)
    )


def cider_at(found: Validation, threshold: float, top: float) -> float:
    (score,) = (
        point["cider"]
        for point in found.curve
        if (point["stop_threshold"], point["top_tags"]) == (threshold, top)
    )
    return score


@pytest.mark.parametrize("free", [{}, {"tune.free_threshold": True}, {"tune.free_top_tags": True}])
def test_what_is_not_free_stays_fixed(checkpoint: Checkpoint, free: dict[str, bool]) -> None:
    # A threshold that is not on the grid is a point of the curve as well.
    own = checkpoint.config.override(
        {"generation.stop_threshold": 0.37, "data.validation_images": IMAGES, **free}
    )
    found = validated(checkpoint, checkpoint.build_model(), own, "train")
    tops = {point["top_tags"] for point in found.curve}
    assert (len(tops) > 1) == ("tune.free_top_tags" in free)
    assert {point["stop_threshold"] for point in found.curve} == {*THRESHOLDS, 0.37}
    mine = [
        point["cider"]
        for point in found.curve
        if ("tune.free_threshold" in free or point["stop_threshold"] == 0.37)
        and ("tune.free_top_tags" in free or point["top_tags"] == own.model.top_tags)
    ]
    assert found.row["score"] == max(mine)
    assert found.row["free_cider"] == max(point["cider"] for point in found.curve)
    chosen = found.config.generation.stop_threshold, found.config.model.top_tags
    assert cider_at(found, *chosen) == found.row["score"]
    named = {"generation.stop_threshold": chosen[0], "model.top_tags": chosen[1]}
    assert found.config == own.override(named)
    if "tune.free_threshold" in free:
        assert found.row["stop_threshold"] == chosen[0]
    else:
        assert "stop_threshold" not in found.row
        assert chosen[0] == 0.37
    if "tune.free_top_tags" in free:
        assert found.row["top_tags"] == chosen[1]
    else:
        assert "top_tags" not in found.row
        assert chosen[1] == own.model.top_tags


def test_ties_go_to_the_nearest(checkpoint: Checkpoint) -> None:
    own = checkpoint.config.override({**FREE, "model.top_tags": 4})
    model = checkpoint.build_model()

    def chosen(score: Callable[[int], float]) -> tuple[float, float]:
        with patch.object(
            validation, "ciders", lambda _, many: [score(place) for place in range(len(many))]
        ):
            row = validated(checkpoint, model, own, "val").row
        return row["stop_threshold"], row["top_tags"]

    assert chosen(lambda _: 0.0) == (0.5, 4)
    size = len(THRESHOLDS)
    # M of 1, 2, 3, 4, ... each with all thresholds: the best is M = 2 or 10, at 0.1, 0.3 or 0.8.
    best = {size * m + t for m in (1, 5) for t in (1, 5, 15)}
    assert chosen(lambda place: float(place in best)) == (0.3, 2)


@pytest.mark.parametrize("system", ["vgg19_tags", "cnn_rnn", "att_rk", "no_attention"])
def test_systems_without_a_stop_threshold_or_tags(
    system: str, tiny: Config, tmp_path: Path
) -> None:
    config = tiny.override({"model.system": system, "training.epochs": 1, **FREE})
    (row,) = run(config, tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    assert row["seconds_per_report"] > 0
    keys = {key for point in checkpoint.curve for key in point}
    expected = {
        "vgg19_tags": set(),
        "cnn_rnn": set(),
        "att_rk": {"top_tags", "cider"},
        "no_attention": {"stop_threshold", "cider"},
    }[system]
    assert keys == expected
    assert ("free_cider" in row) == bool(expected)
    assert {"stop_threshold", "top_tags"} & set(row) == expected - {"cider"}
    if system == "att_rk":
        tags = len(checkpoint.vocabulary.tags)
        assert [point["top_tags"] for point in checkpoint.curve] == [
            top for top in TOP_TAGS if top <= tags
        ]
        assert row["cider"] == max(point["cider"] for point in checkpoint.curve)
    if not expected:
        assert checkpoint.config == config.override({"training.precision": "float32"})


def run(config: Config, folder: Path, epochs: int | None = None) -> list[Row]:
    """Train, for so many epochs if it is not to the end."""
    rows: list[Row] = []

    def report(row: Row) -> None:
        rows.append(row)
        if len(rows) == epochs:
            raise KeyboardInterrupt

    if epochs is None:
        train(config, folder, ALONE, Recorder(report))
    else:
        with pytest.raises(KeyboardInterrupt):
            train(config, folder, ALONE, Recorder(report))
    return rows


def weights(folder: Path) -> dict[str, torch.Tensor]:
    last = latest(folder)
    assert last is not None
    return safetensors.torch.load_file(last / MODEL_FILE)


def same(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == expected.keys() and all(torch.equal(ours[k], expected[k]) for k in ours)


def test_a_run_with_free_parameters(learner: Config, tmp_path: Path) -> None:
    learner = learner.override({"training.epochs": 4})
    config = learner.override(FREE)
    rows = run(config, tmp_path / "whole")
    # Training does not depend on them, nor does going on from a checkpoint that carries others.
    plain = run(learner, tmp_path / "plain")
    assert [row["loss"] for row in rows] == [row["loss"] for row in plain]
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "plain"))
    first = run(config, tmp_path / "resumed", epochs=2)
    last = latest(tmp_path / "resumed")
    assert last is not None
    assert Checkpoint.open(last).config != config
    assert untimed(first + run(config, tmp_path / "resumed")) == untimed(rows)
    assert same(weights(tmp_path / "resumed"), weights(tmp_path / "whole"))
    for ours, expected in zip(
        *(sorted(checkpoints_of(tmp_path / name).iterdir()) for name in ("resumed", "whole")),
        strict=True,
    ):
        # The best and the last: each with its own curve and its own choice.
        one, other = Checkpoint.open(ours), Checkpoint.open(expected)
        assert (one.curve, one.config) == (other.curve, other.config)
        row = one.history[-1]
        chosen = one.config.generation.stop_threshold, one.config.model.top_tags
        assert chosen == (row["stop_threshold"], row["top_tags"])
        assert scored(one, one.build_model(), one.config, "val") == pytest.approx(row["cider"])
    assert any(row["score"] > old["score"] for row, old in zip(rows, plain, strict=True))
    assert [row["free_cider"] for row in rows] == [row["score"] for row in rows]
