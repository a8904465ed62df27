"""Scores of a checkpoint against the metrics called directly on what was predicted."""

import hashlib
import json
import math
import os
import shutil
import weakref
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from raymed import evaluation as evaluation_module
from raymed.data.dataset import PreparedDataset, Split
from raymed.data.r2gen_text import IU_XRAY
from raymed.data.sources.phantom import draw
from raymed.errors import UsageError
from raymed.evaluation import baseline_scores, baselines, evaluate
from raymed.generation import Report
from raymed.metrics import ngrams
from raymed.training.checkpoint import Checkpoint
from raymed.training.trained_on import Overlap
from tests.support.prepared import prepare_examples
from tests.support.r2gen_by_hand import references_by_hand


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
        ("nearest image (features)", "nearest_by_features_report"),
    ):
        written = {i: [text] for i, text in enumerate(rows[column])}
        scores = evaluation.rows[name]
        assert scores["cider"] == pytest.approx(Cider().compute_score(truth, written)[0])
        assert scores["rouge_l"] == pytest.approx(Rouge().compute_score(truth, written)[0])
        assert scores["distinct"] == len(set(rows[column]))
    assert evaluation.unavailable == {}
    assert 0 < evaluation.rows["co_attention"]["meteor"] < 1


def test_the_predictions_are_the_split_in_order(evaluated, phantom):
    rows = columns(evaluated[1])
    train = PreparedDataset.open(phantom).split("train")
    assert rows["image_id"] == list(train.image_ids)
    assert rows["reference"] == [" ".join(sentences) for sentences in train.sentences]
    assert rows["report"] == [" ".join(s for s in each if s) for each in rows["sentences"]]


def test_with_the_text_of_r2gen_its_references_are_scored(checkpoint, phantom, tmp_path):
    size = PreparedDataset.open(phantom).info.image_size
    films = list(draw(30, 5, size))
    splits = ["train", "val", "test"]
    films = [replace(film, split=splits[n % 3]) for n, film in enumerate(films)]
    out, settings = tmp_path / "data", {"image_size": size, "text": "r2gen"}
    prepare_examples(films, out, rules=IU_XRAY, **settings)
    config = checkpoint.config
    config = config.model_copy(update={"data": config.data.model_copy(update={"path": str(out)})})
    evaluation = evaluate(checkpoint, config, "test", tmp_path / "scores")
    rows = columns(tmp_path / "scores")
    texts = {n: [f.report for f in films if f.split == n] for n in ("train", "test")}
    references = references_by_hand(texts, mimic=False)
    assert rows["reference"] == references["test"]
    assert set(rows["constant_report"]) < set(references["train"])
    assert any("<unk>" in text for text in references["test"])
    truth = {i: [text] for i, text in enumerate(references["test"])}
    written = {i: [text] for i, text in enumerate(rows["report"])}
    scores = evaluation.rows["co_attention"]
    assert scores["rouge_l"] == pytest.approx(Rouge().compute_score(truth, written)[0])


def test_recall_counts_the_tags_by_name(evaluated):
    rows = columns(evaluated[1])
    shares = [
        len(set(predicted[:5]) & set(truth)) / len(truth)
        for predicted, truth in zip(rows["predicted_tags"], rows["tags"], strict=True)
    ]
    assert evaluated[0].rows["co_attention"]["recall_5"] == pytest.approx(np.mean(shares))


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


def test_images_are_also_compared_by_the_encoders_features(evaluated, checkpoint):
    train = PreparedDataset.open(checkpoint.config.data.path).split("train")
    encoder = checkpoint.encoder(dropout=0.0).double().eval()
    with torch.no_grad():
        maps = encoder.feature_map(torch.from_numpy(train.pixels(np.arange(len(train)))))
    pooled = [[channel.mean().item() for channel in one] for one in maps]
    wanted = []
    for one, study in zip(pooled, train.studies, strict=True):
        cosines = [
            sum(x * y for x, y in zip(one, other, strict=True))
            / math.hypot(*one)
            / math.hypot(*other)
            for other in pooled
        ]
        others = [row for row, other in enumerate(train.studies) if other != study]
        wanted.append(max(others, key=cosines.__getitem__))
    found = columns(evaluated[1])["nearest_by_features_report"]
    assert found == [train.references[row] for row in wanted]
    assert found != columns(evaluated[1])["nearest_report"]


def test_a_training_image_finds_no_other_view_of_its_own_study(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    drawn = list(draw(16, image_size=32))
    # The second view of a study is darker, and by far the nearest to the first.
    views = [
        replace(one, image_id=f"{one.image_id}-{name}", image=one.image // dark)
        for one in drawn
        for name, dark in (("a", 1), ("b", 2))
    ]
    prepare_examples(views, tmp_path / "data", image_size=32)
    dataset = PreparedDataset.open(tmp_path / "data")
    train = dataset.split("train")
    found = baselines(dataset, "train", None)["nearest image"]
    wanted = nearest_of_others(train)
    assert list(found.texts) == [train.references[row] for row in wanted]
    assert [next(iter(tags)) for tags in found.tags] == [train.tags[row][0] for row in wanted]


def test_predictions_are_written_as_they_are_generated(checkpoint, tmp_path, monkeypatch):
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


def test_baselines_cover_no_more_images_than_are_scored(phantom, monkeypatch):
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
    assert found["nearest image"]["cider"] == pytest.approx(expected)
    assert baseline_scores(dataset, "val", 99) == whole


def test_the_scores_are_written_as_json(evaluated):
    evaluation, out = evaluated
    left = json.loads((out / "scores.json").read_text())
    assert left["rows"]["nearest image"]["cider"] == evaluation.rows["nearest image"]["cider"]
    assert left["images"] == evaluation.images


def test_a_dataset_of_another_image_size_is_rejected(checkpoint, phantom, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(phantom, other)
    info = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps({**info, "image_size": 48}))
    config = checkpoint.config.override({"data.path": str(other)})
    with pytest.raises(UsageError, match=r"48 pixels.*image_size=32"):
        evaluate(checkpoint, config, "test", Path(tmp_path))


def changed(files):
    return {path.name: path.stat().st_mtime_ns for path in files.iterdir()}


def test_results_record_what_they_were_made_from(evaluated, checkpoint, phantom):
    evaluation, out = evaluated
    record = json.loads((out / "scores.json").read_text())["made_from"]
    schema = pq.read_schema(out / "predictions.parquet")
    assert json.loads(schema.metadata[b"made_from"]) == record
    weights = hashlib.sha256((checkpoint.path / "model.safetensors").read_bytes()).digest()
    info = json.loads((phantom / "dataset.json").read_text())
    assert record == {
        "raymed": version("raymed"),
        "checkpoint": {
            "path": str(checkpoint.path),
            "epoch": checkpoint.epoch,
            "weights": hashlib.sha256(weights).hexdigest(),
            "trained_on": info["content_hash"],
        },
        "data": {"path": str(phantom), "content_hash": info["content_hash"], "split": "train"},
        "settings": {
            "model.top_tags": checkpoint.config.model.top_tags,
            **{
                f"generation.{key}": value
                for key, value in checkpoint.config.generation.model_dump(mode="json").items()
            },
        },
        "precision": "float32",
    }
    assert evaluation.made_from == record


def test_the_same_evaluation_may_be_run_again(evaluated, checkpoint, phantom, tmp_path):
    shutil.copytree(evaluated[1], tmp_path / "out")
    # The location of the same data and the same run does not matter.
    shutil.copytree(phantom, tmp_path / "moved")
    shutil.copytree(checkpoint.path, tmp_path / "checkpoint")
    config = checkpoint.config.override({"data.path": str(tmp_path / "moved")})
    again = evaluate(Checkpoint.open(tmp_path / "checkpoint"), config, "train", tmp_path / "out")
    assert again.rows == evaluated[0].rows


@pytest.mark.parametrize(
    ("name", "lost", "values", "split", "said"),
    [
        ("", "", {"generation.max_words": 3}, "train", "generation.max_words: 30 -> 3"),
        ("", "scores.json", {}, "val", 'predictions.parquet: .*data.split: "train" -> "val"'),
        ("", "predictions.parquet", {}, "val", 'scores.json: .*data.split: "train" -> "val"'),
        ("old.json", "", {}, "train", "scores.json: does not say what it was made from"),
        ("half.json", "", {}, "train", "scores.json: does not say what it was made from"),
    ],
)
def test_results_of_something_else_are_not_replaced(
    evaluated, checkpoint, tmp_path, monkeypatch, name, lost, values, split, said
):
    out = tmp_path / "out"
    shutil.copytree(evaluated[1], out)
    if lost:
        (out / lost).unlink()
    if name:
        text = (out / "scores.json").read_text()
        content = json.loads(text)
        del content["made_from"]
        (out / "scores.json").write_text(json.dumps(content) if name == "old.json" else text[:99])
    before = changed(out)
    # Nothing is computed before.
    monkeypatch.setattr(evaluation_module, "baselines", None)
    with pytest.raises(UsageError, match=f"{said}.*out=FOLDER, or delete"):
        evaluate(checkpoint, checkpoint.config.override(values), split, out)
    assert changed(out) == before


def test_another_checkpoint_of_a_run_is_something_else(evaluated, checkpoint, tmp_path):
    folders = checkpoint.path.parent.glob("epoch-*")
    other = Checkpoint.open(next(folder for folder in folders if folder != checkpoint.path))
    shutil.copytree(evaluated[1], tmp_path / "out")
    with pytest.raises(UsageError, match=r"checkpoint\.epoch: .*checkpoint\.weights: "):
        evaluate(other, checkpoint.config, "train", tmp_path / "out")


def test_images_that_the_run_was_trained_on_are_counted(checkpoint, phantom, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    own = evaluate(checkpoint, checkpoint.config, "test", tmp_path / "own")
    assert own.trained_on == Overlap(0, 0, 0)
    assert own.notes() == [f"The run was trained on 0 of these {own.images} images."]
    films = list(draw(30, image_size=32))
    prepare_examples(films, tmp_path / "again", image_size=32, seed=1)
    again = PreparedDataset.open(tmp_path / "again")
    known = set(PreparedDataset.open(phantom).split("train").image_ids)
    count = len(known.intersection(again.split("test").image_ids))
    assert count
    config = checkpoint.config.override({"data.path": again.path})
    found = evaluate(checkpoint, config, "test", tmp_path / "out")
    assert found.trained_on == Overlap(count, count, count)
    left = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert left["trained_on"] == {"images": count, "by_id": count, "by_pixels": count}
    first, second = found.notes()
    assert first.startswith(
        f"WARNING: the run was trained on {count} of these {found.images} images ({count} by id, "
    )
    assert again.info.content_hash[:12] in second
    assert checkpoint.content_hash[:12] in second


def test_a_run_without_a_record_of_its_images_is_noted(checkpoint, tmp_path):
    shutil.copytree(checkpoint.path, tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "trained-on.safetensors").unlink()
    old = Checkpoint.open(tmp_path / "checkpoint")
    found = evaluate(old, old.config, "test", tmp_path / "out")
    assert "is not known" in found.notes()[0]
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["trained_on"] is None


def test_the_training_split_is_no_warning(evaluated):
    assert evaluated[0].trained_on == Overlap(24, 24, 24)
    assert evaluated[0].notes() == ["The run was trained on 24 of these 24 images."]


def test_a_split_on_which_nothing_can_score_is_noted(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Three studies, one in each split; the test split's two images have one report.
    splits = ("train", "val", "test", "test")
    drawn = zip(draw(4, image_size=32), splits, strict=True)
    films = [replace(one, split=split) for one, split in drawn]
    films[3] = replace(films[3], report=films[2].report)
    prepare_examples(films, tmp_path / "few", image_size=32, split="given")
    config = checkpoint.config.override({"data.path": str(tmp_path / "few")})
    found = evaluate(checkpoint, config, "test", tmp_path / "out")
    assert found.rows["nearest image"]["cider"] == 0
    assert any(
        "CIDEr cannot be above 0 on the 2 image(s) of split test" in n for n in found.notes()
    )
