"""Datasets, runs, sweeps and pages in stores that speak S3, or Google's protocol."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from rich.console import Console

from raymed import locks
from raymed.cache import cache_folder
from raymed.cli import main
from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.errors import UsageError
from raymed.export import EXPORT_FILE, READ, STEP, VOCABULARY_FILE
from raymed.launch.run import run_training
from raymed.locks import LOCK_FILE, folder_lock
from raymed.predictions_file import PREDICTIONS_FILE, SCORES_FILE
from raymed.reports.model_card import CARD_FILE
from raymed.run_folder import RunFolder
from raymed.storage import (
    AnyPath,
    RemotePath,
    Unreachable,
    as_path,
    atomic_path,
    atomic_write_text,
    file_stamp,
    local_copy,
    remove_tree,
)
from raymed.training import features
from raymed.training.checkpoint import MODEL_FILE, latest, whole_checkpoints
from raymed.training.errors import TrainingFailed
from raymed.training.log import METRICS_FILE, read_metrics
from raymed.training.loop import train
from raymed.training.observer import Row
from raymed.training.worker import Worker
from raymed.tuning.finetune import fine_tune
from raymed.tuning.page import write_report
from raymed.tuning.study import open_study
from raymed.tuning.sweep import run_sweep
from tests.support.metric_rows import untimed
from tests.support.object_stores import S3, Server, serving_gcs, serving_s3
from tests.support.recording import Recorder

ALONE = Worker(torch.device("cpu"))


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with serving_s3() as server:
        yield server


@pytest.fixture(scope="module", params=["s3", "gcs"])
def store(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Each store in turn."""
    with serving_s3() if request.param == "s3" else serving_gcs() as server:
        yield server


@pytest.fixture
def stored(tiny: Config, phantom: Path, server: S3, tmp_path: Path) -> Config:
    return stored_in(server, tiny, phantom, tmp_path.name)


def stored_in(server: Server, tiny: Config, phantom: Path, name: str) -> Config:
    """The tiny run, reading and writing everything in the store, in a folder of this test."""
    data = server.upload(phantom, f"{name}/data")
    return tiny.override({"data.path": str(data), "run.folder": str(server.root / name / "runs")})


def weights(folder: AnyPath) -> dict[str, torch.Tensor]:
    last = latest(folder)
    assert last is not None
    with local_copy(last / MODEL_FILE) as file:
        return {name: tensor.clone() for name, tensor in safetensors.torch.load_file(file).items()}


def assert_same_weights(folder: AnyPath, other: AnyPath) -> None:
    ours, expected = weights(folder), weights(other)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_a_remote_path_behaves_like_a_local_one(store: Server) -> None:
    folder = store.root / "outer" / "inner"
    assert not folder.exists()
    assert list(folder.iterdir()) == []
    atomic_write_text(folder / "text.txt", "grüße")
    with atomic_path(folder / "deep" / "bytes.bin") as partial:
        partial.write_bytes(bytes(range(256)) * 40_000)
        assert not (folder / "deep").exists()
    assert (folder / "text.txt").read_text() == "grüße"
    with local_copy(folder / "deep" / "bytes.bin") as local:
        assert local.read_bytes() == bytes(range(256)) * 40_000
    assert sorted(folder.iterdir()) == [folder / "deep", folder / "text.txt"]
    assert [found.name for found in folder.glob("*.txt")] == ["text.txt"]
    assert ((folder / "deep").is_dir(), (folder / "text.txt").is_file()) == (True, True)
    assert ((folder / "deep").is_file(), (folder / "text.txt").is_dir()) == (False, False)
    assert as_path(str(folder)) == folder
    assert (folder / "text.txt").parent == folder
    first = file_stamp(folder / "text.txt")
    assert file_stamp(folder / "text.txt") == first
    atomic_write_text(folder / "text.txt", "longer than before")
    assert file_stamp(folder / "text.txt") != first
    (folder / "text.txt").unlink()
    (folder / "text.txt").unlink(missing_ok=True)
    for ask in (RemotePath.read_text, RemotePath.unlink, file_stamp):
        with pytest.raises(FileNotFoundError):
            ask(folder / "text.txt")
    remove_tree(folder)
    assert not folder.exists()


def test_a_failed_write_leaves_no_file(store: Server) -> None:
    target = store.root / "failed" / "file"

    def write_half() -> None:
        with atomic_path(target) as partial:
            partial.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert not target.exists()


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s4://bucket/runs", "is not a path or URI that pyarrow supports"),
        ("s3://a bucket/runs", "is not a path or URI that pyarrow supports"),
    ],
)
def test_unsupported_uris_are_refused_by_name(tiny: Config, uri: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        run_training(tiny.override({"data.path": uri}), Console(quiet=True))
    assert uri.partition("?")[0] in str(raised.value)


@pytest.mark.slow
def test_a_node_downloads_a_dataset_once_and_checks_it(
    stored: Config, tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.map(references_of, [stored.data.path] * 2)
    dataset = PreparedDataset.open(stored.data.path)
    assert found == [references_of(tiny.data.path)] * 2
    parts = cache_folder(dataset.info.content_hash, "parts")
    copies = {file: file.stat().st_mtime_ns for file in parts.glob("*.parquet")}
    assert [file.name for file in copies] == ["train-00000.parquet"]
    dataset.split("train")
    assert {file: file.stat().st_mtime_ns for file in copies} == copies
    # A damaged local copy is downloaded again; a damaged part in the store is refused.
    (copy,) = copies
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 1
    copy.write_bytes(content)
    (parts.parent / "train.arrow").unlink()
    rows = np.arange(24)
    fresh = PreparedDataset.open(tiny.data.path).split("train").pixels(rows)
    assert np.array_equal(dataset.split("train").pixels(rows), fresh)
    copy.unlink()
    (parts.parent / "train.arrow").unlink()
    with atomic_path(as_path(stored.data.path) / copy.name) as damaged:
        damaged.write_bytes(content)
    with pytest.raises(UsageError, match=r"train-00000.parquet is missing or damaged"):
        PreparedDataset.open(stored.data.path).split("train")
    assert not copy.exists()
    (as_path(stored.data.path) / "val-00000.parquet").unlink()
    with pytest.raises(UsageError, match=r"val-00000.parquet is missing or damaged"):
        dataset.split("val")


def references_of(path: str) -> list[str]:
    return list(PreparedDataset.open(path).split("train").references)


def test_a_run_in_a_store_equals_one_on_disk(
    store: Server,
    tiny: Config,
    phantom: Path,
    whole: tuple[Path, list[Row]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    stored = stored_in(store, tiny, phantom, tmp_path.name)

    class Interrupted(Exception):
        pass

    def interrupt(_: Row) -> None:
        raise Interrupted

    run = RunFolder.of(stored)
    run.initialise(stored)
    folder = run.path
    with pytest.raises(Interrupted):
        train(stored, folder, ALONE, Recorder(interrupt))
    assert [path.name for path in whole_checkpoints(folder)] == ["epoch-0001"]
    (tmp_path / "run.yaml").write_text(stored.to_yaml())
    assert main(["train", str(tmp_path / "run.yaml")]) == 0
    assert f"next: raymed evaluate '{folder}' split=test" in capsys.readouterr().out
    assert untimed(read_metrics(folder / METRICS_FILE)) == untimed(whole[1])
    assert_same_weights(folder, whole[0])
    kept = sorted(path.name for path in (whole[0] / "checkpoints").iterdir())
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == kept
    assert len(list((folder / "tensorboard").iterdir())) == 2
    assert not (folder / LOCK_FILE).exists()
    # Scores, predictions and figures too.
    assert main(["evaluate", str(folder), "split=test"]) == 0
    scores = json.loads((folder / "test" / SCORES_FILE).read_text())
    assert scores["rows"]["co_attention"]["cider"] is not None
    with local_copy(folder / "test" / PREDICTIONS_FILE) as file:
        assert len(pq.read_table(file)) == 3
    assert "### test split" in (folder / CARD_FILE).read_text(encoding="utf-8")
    assert main(["export", str(folder), f"out={folder / 'exported'}"]) == 0
    exported = {file.name for file in (folder / "exported").iterdir()}
    assert exported == {READ, STEP, VOCABULARY_FILE, EXPORT_FILE, CARD_FILE}
    with local_copy(folder / "exported" / STEP) as file:
        torch.export.load(file)
    assert main(["figure", "4", str(folder), f"out={folder / 'figures'}"]) == 0
    assert {file.name.rpartition(".")[2] for file in (folder / "figures").iterdir()} == {
        "png",
        "html",
    }


def test_the_store_goes_away_and_comes_back(
    stored: Config, server: S3, whole: tuple[Path, list[Row]]
) -> None:
    folder = as_path(stored.run.folder) / stored.run.name

    def disturb(row: Row) -> None:
        if row["epoch"] == 1:
            saving_is_over(folder, 1)
            server.stop()
        elif row["epoch"] == 2:
            while not failures():
                time.sleep(0.05)
            server.start()

    def failures() -> list[str]:
        # TensorBoard's file of the first epoch may be on its way when the store goes.
        return [text for text in recorder.warnings if "epoch-0002" in text]

    recorder = Recorder(disturb)
    try:
        train(stored, folder, ALONE, recorder)
    finally:
        # Where it has failed before.
        if not failures():
            server.start()
    (warning,) = failures()
    assert f"{folder / 'checkpoints' / 'epoch-0002'}" in warning
    assert "could not be written" in warning
    assert "the previous one is intact" in warning
    assert untimed(recorder.rows) == untimed(whole[1])
    assert untimed(read_metrics(folder / METRICS_FILE)) == untimed(whole[1])
    assert_same_weights(folder, whole[0])


@pytest.mark.slow
def test_a_run_that_ends_while_the_store_is_down_fails_and_resumes_later(
    stored: Config, server: S3, whole: tuple[Path, list[Row]]
) -> None:
    folder = as_path(stored.run.folder) / stored.run.name

    def disturb(row: Row) -> None:
        if row["epoch"] == 2:
            saving_is_over(folder, 2)
            server.stop()

    try:
        with pytest.raises(TrainingFailed, match=r"epoch-0003.*could not be written"):
            train(stored, folder, ALONE, Recorder(disturb))
        with pytest.raises(Unreachable, match="cannot be reached"):
            latest(folder)
    finally:
        server.start()
    last = latest(folder)
    assert last is not None
    assert last.name == "epoch-0002"
    train(stored, folder, ALONE, Recorder())
    assert_same_weights(folder, whole[0])


def saving_is_over(folder: AnyPath, epoch: int) -> None:
    """Wait until an epoch's metrics are written, which come after its checkpoint."""
    while len(read_metrics(folder / METRICS_FILE)) < epoch:
        time.sleep(0.01)


def test_two_commands_on_one_folder(
    server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(locks, "SILENCE_S", 2.5)
    folder = server.root / tmp_path.name
    with folder_lock(folder):
        held = r"is in use by another raymed \(process \d+ on "
        with pytest.raises(UsageError, match=held), folder_lock(folder):
            pass
        assert (folder / LOCK_FILE).exists()
    assert not (folder / LOCK_FILE).exists()
    # A process that was killed sends no heartbeat.
    atomic_write_text(folder / LOCK_FILE, "process 1 on elsewhere\n0123 4\n")
    with folder_lock(folder):
        assert "elsewhere" not in (folder / LOCK_FILE).read_text()


HOLD = """
import sys, time
from raymed import locks
from raymed.storage import as_path
locks.HEARTBEAT_S, locks.SILENCE_S = 0.2, 2.5
try:
    with locks.folder_lock(as_path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(600)
except locks.UsageError as error:
    print(error, flush=True)
"""


def test_a_suspended_holder_whose_folder_was_taken_over_ends(
    server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(locks, "SILENCE_S", 2.5)
    folder = server.root / tmp_path.name
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    ) as sleeper:
        assert sleeper.stdout is not None
        try:
            assert sleeper.stdout.readline() == "held\n"
            sleeper.send_signal(signal.SIGSTOP)
            with folder_lock(folder):
                sleeper.send_signal(signal.SIGCONT)
                said, _ = sleeper.communicate(timeout=60)
                assert f"another raymed (process {os.getpid()} on " in said
                assert said.count("\n") == 1
                # Neither its heartbeat nor its exit has touched our lock file.
                mark = (folder / LOCK_FILE).read_text().rpartition(" ")[0]
                assert mark.startswith(f"process {os.getpid()} on ")
                until = time.monotonic() + 60
                first = (folder / LOCK_FILE).read_text()
                while (now := (folder / LOCK_FILE).read_text()) == first:
                    assert time.monotonic() < until
                    time.sleep(0.05)
                assert now.rpartition(" ")[0] == mark
        finally:
            sleeper.kill()
    assert not (folder / LOCK_FILE).exists()


def test_features_are_shared_through_the_store(
    stored: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = as_path(stored.run.folder).parent / "features"
    frozen = stored.override({"model.train_encoder": "none", "data.features": str(shared)})
    folder = as_path(stored.run.folder)
    monkeypatch.setattr(features, "_digests", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    train(frozen, folder / "one", ALONE, Recorder())
    (key,) = shared.iterdir()
    assert len(list(key.glob("*.arrow"))) == 2
    # Another node computes nothing.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    monkeypatch.setattr(features, "_chunks", None)
    train(frozen, folder / "two", ALONE, Recorder())
    assert_same_weights(folder / "one", folder / "two")
    assert (latest(folder / "two") / "encoder.safetensors").is_file()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_a_sweep_in_the_store(stored: Config) -> None:
    config = stored.override(
        {
            "run.name": "sweep",
            "launch.workers": 1,
            "training.epochs": 2,
            "tune.trials": 2,
            "tune.groups": 1,
            "tune.space": {"loss.tag": {"log_uniform": [0.1, 10]}},
            "tune.stopping": "none",
        }
    )
    console = Console(quiet=True)
    first = run_sweep(config, console)
    assert len(first.results) == 2
    # The same command with more trials resumes from the store.
    sweep = run_sweep(config.override({"tune.trials": 3}), console)
    assert len(sweep.results) == 3
    assert {result.trial for result in first.results} < {result.trial for result in sweep.results}
    study = open_study(config, sweep.folder)
    assert [trial.state for trial in study.trials] == [optuna.trial.TrialState.COMPLETE] * 3
    with local_copy(sweep.leaderboard) as file:
        assert pq.read_table(file)["trial"].to_pylist() == [r.trial for r in sweep.results]
    page = sweep.folder / "report.html"
    write_report(sweep.folder, page)
    assert "trial-002" in page.read_text()
    (tuned,) = fine_tune(sweep.folder, 1, ["training.epochs=1"], console)
    assert tuned.folder == sweep.folder / "fine-tuned" / sweep.results[0].trial
    assert latest(tuned.folder) is not None
