"""Scores of a checkpoint against the metrics called directly on what was predicted."""

import json
import os
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from rich.console import Console

from raymed import evaluation as evaluation_module
from raymed.data.dataset import PreparedDataset, Split
from raymed.data.phantom import draw
from raymed.data.prepare import prepare
from raymed.errors import UsageError
from raymed.evaluation import baseline_scores, baselines, evaluate
from raymed.generation import Report
from raymed.metrics import ngrams
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
    assert rows["nearest_report"] == [train.references[row] for row in nearest_of_others(train)]
    assert rows["nearest_report"] != list(train.references)


def nearest_of_others(train):
    """Of each image the nearest that is of another study, at 32 x 32 pixels."""
    flat = train.pixels(np.arange(len(train))).reshape(len(train), -1).astype(float)
    flat = (flat - flat.mean(axis=1)[:, None]) / flat.std(axis=1)[:, None]
    distance = ((flat[:, None] - flat) ** 2).sum(axis=2)
    for row, study in enumerate(train.studies):
        distance[row, [one == study for one in train.studies]] = np.inf
    return distance.argmin(axis=1).tolist()


def test_a_training_image_finds_no_other_view_of_its_own_study(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    drawn = list(draw(16, image_size=32))
    # The second view of a study is darker, and by far the nearest to the first.
    views = [
        replace(one, image_id=f"{one.image_id}-{name}", image=one.image // dark)
        for one in drawn
        for name, dark in (("a", 1), ("b", 2))
    ]
    prepare(views, tmp_path / "data", source="x", image_size=32, console=Console(quiet=True))
    dataset = PreparedDataset.open(tmp_path / "data")
    train = dataset.split("train")
    found = baselines(dataset, "train", None)["nearest image"]
    wanted = nearest_of_others(train)
    assert list(found.texts) == [train.references[row] for row in wanted]
    assert [next(iter(tags)) for tags in found.tags] == [train.tags[row][0] for row in wanted]


def test_predictions_are_written_as_they_come(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(ngrams, "CHUNK", 4)
    alive, most = weakref.WeakSet(), [0]
    real = evaluation_module.write_reports

    def write_reports(*of):
        for row, report in real(*of):
            alive.add(report := replace(report))
            most[0] = max(most[0], len(alive))
            yield row, report
            del report

    # A frozen dataclass with lists has no hash of its own.
    monkeypatch.setattr(Report, "__hash__", object.__hash__)
    monkeypatch.setattr(evaluation_module, "write_reports", write_reports)
    found = evaluate(checkpoint, checkpoint.config, "train", tmp_path)
    assert found.images == 24
    # None is kept with all its tags until its group of four is written.
    assert most[0] <= 2
    file = pq.ParquetFile(tmp_path / "predictions.parquet")
    assert file.num_row_groups == 6


def test_without_another_study_the_nearest_image_has_no_report(phantom, monkeypatch):
    dataset = PreparedDataset.open(phantom)
    monkeypatch.setattr(evaluation_module, "nearest", lambda *of: np.full(of[2], -1))
    found = baselines(dataset, "val", None)["nearest image"]
    count = dataset.info.counts["val"]
    assert list(found.texts) == [""] * count
    assert list(found.tags) == [dataset.tags[:20]] * count


def test_baselines_are_of_no_more_images_than_are_scored(phantom, monkeypatch):
    dataset = PreparedDataset.open(phantom)
    count = dataset.info.counts["val"]
    asked, read = [], Split.pixels
    assert count != dataset.info.counts["train"]

    def pixels(self, rows):
        asked.extend(rows.tolist() if len(self) == count else ())
        return read(self, rows)

    whole = baseline_scores(dataset, "val", None)
    monkeypatch.setattr(Split, "pixels", pixels)
    found = baseline_scores(dataset, "val", 2)
    assert set(asked) == {0, 1}
    split = dataset.split("val")
    texts = list(baselines(dataset, "val", None)["nearest image"].texts)
    truth = {i: [split.references[i]] for i in (0, 1)}
    expected = Cider().compute_score(truth, {i: [texts[i]] for i in (0, 1)})[0]
    assert found["nearest image"].cider == pytest.approx(expected)
    assert baseline_scores(dataset, "val", 99) == whole


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
