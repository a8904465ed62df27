"""Scores of a checkpoint against the metrics called directly on what was predicted."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from raymed.data.dataset import PreparedDataset
from raymed.errors import UsageError
from raymed.evaluation import evaluate
from raymed.training.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def checkpoint(trained):
    return Checkpoint.open(trained)


@pytest.fixture(scope="module")
def evaluated(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    with pytest.MonkeyPatch.context() as patch:
        # No Java but the wheel's can be found.
        patch.setenv("PATH", os.fspath(out))
        evaluation = evaluate(checkpoint, checkpoint.config, "train", out)
    return evaluation, out


def columns(out):
    return pq.read_table(out / "predictions.parquet").to_pydict()


def test_scores_are_those_of_the_predictions(evaluated):
    evaluation, out = evaluated
    rows = columns(out)
    truth = {i: [text] for i, text in enumerate(rows["reference"])}
    for name, column in (
        ("co_attention", "report"),
        ("constant report", "constant_report"),
        ("nearest image", "nearest_report"),
    ):
        written = {i: [text] for i, text in enumerate(rows[column])}
        scores = evaluation.rows[name]
        assert scores.cider == pytest.approx(Cider().compute_score(truth, written)[0])
        assert scores.rouge_l == pytest.approx(Rouge().compute_score(truth, written)[0])
        assert scores.distinct == len(set(rows[column]))
    assert evaluation.meteor_missing is None
    assert 0 < evaluation.rows["co_attention"].meteor < 1


def test_the_predictions_are_the_split_in_order(evaluated, phantom):
    rows = columns(evaluated[1])
    train = PreparedDataset.open(phantom).split("train")
    assert rows["image_id"] == list(train.image_ids)
    assert rows["reference"] == [" ".join(sentences) for sentences in train.sentences]
    assert rows["report"] == [" ".join(s for s in each if s) for each in rows["sentences"]]


def test_recall_counts_the_tags_by_name(evaluated):
    rows = columns(evaluated[1])
    shares = [
        len(set(predicted[:5]) & set(truth)) / len(truth)
        for predicted, truth in zip(rows["predicted_tags"], rows["tags"], strict=True)
    ]
    assert evaluated[0].rows["co_attention"].recall_5 == pytest.approx(np.mean(shares))


def test_the_baselines_come_from_the_training_split(evaluated, phantom):
    rows = columns(evaluated[1])
    train = PreparedDataset.open(phantom).split("train")
    assert len(set(rows["constant_report"])) == 1
    assert rows["constant_report"][0] in train.references
    # Of a training image, the nearest training image is itself.
    assert rows["nearest_report"] == train.references


def test_the_scores_are_left_as_json(evaluated):
    evaluation, out = evaluated
    left = json.loads((out / "scores.json").read_text())
    assert left["rows"]["nearest image"]["cider"] == evaluation.rows["nearest image"].cider
    assert left["images"] == evaluation.images


def test_a_data_set_of_another_image_size_is_refused(checkpoint, phantom, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(phantom, other)
    info = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps({**info, "image_size": 48}))
    config = checkpoint.config.override({"data.path": str(other)})
    with pytest.raises(UsageError, match=r"48 pixels.*image_size=32"):
        evaluate(checkpoint, config, "test", Path(tmp_path))
