"""`run_training`: in the calling process, on Ray Train workers, and resumed."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from rich.console import Console

from raymed import config as configuration
from raymed.absolute_paths import with_absolute_paths
from raymed.cli import main
from raymed.config import Config
from raymed.errors import UsageError
from raymed.launch import run as run_module
from raymed.launch.run import run_training
from raymed.launch.trainer import check_room
from raymed.run_folder import CONFIG_FILE
from raymed.training.checkpoint import MODEL_FILE, Checkpoint, latest
from raymed.training.errors import TrainingFailed
from raymed.training.loop import train
from raymed.training.observer import Observer, Row
from raymed.training.worker import Worker
from tests.support.metric_rows import rows_of
from tests.support.prepared import prepare_phantom
from tests.support.recording import Recorder

EPOCHS = 10
IN_ONE_PROCESS = """
import json, os, sys
from pathlib import Path
import ray
from rich.console import Console
from raymed import config
from raymed.launch import run

real, inside = run.train, []

def train(*arguments, **others):
    inside.append(os.getpid())
    real(*arguments, **others)

run.train = train
run.run_training(config.load(sys.argv[1]), Console(quiet=True))
seen = {"pid": os.getpid(), "inside": inside, "ray": ray.is_initialized()}
Path(sys.argv[2]).write_text(json.dumps(seen))
"""


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def settings(tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Settings of a run that is long enough to be disturbed."""
    folder = tmp_path_factory.mktemp("runs")
    return tiny.override(
        {"training.epochs": EPOCHS, "training.batch_size": 2, "run.folder": str(folder)}
    )


def run(config: Config) -> Path:
    run_training(config, Console(quiet=True))
    return Path(config.run.folder) / config.run.name


def assert_same_weights(folder: Path, other: Path) -> None:
    ours, expected = (
        safetensors.torch.load_file(last / MODEL_FILE)
        for last in map(latest, (folder, other))
        if last
    )
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


@pytest.fixture(scope="module")
def in_process(settings: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run in a process of its own, without Ray, and what was observed in it."""
    config = settings.override({"run.name": "alone"})
    files = tmp_path_factory.mktemp("alone")
    (files / "run.yaml").write_text(config.to_yaml())
    command = [sys.executable, "-c", IN_ONE_PROCESS, str(files / "run.yaml"), str(files / "seen")]
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    # As many threads as a worker has; sums over more of them are rounded otherwise.
    env["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    # Nothing is printed but what raymed itself says, and its console is quiet.
    assert (done.stdout, done.stderr) == ("", "")
    return Path(config.run.folder) / "alone", json.loads((files / "seen").read_text())


@pytest.fixture(scope="module")
def on_two(settings: Config, ray: None) -> Path:  # noqa: ARG001
    return run(settings.override({"run.name": "on-two", "launch.workers": 2}))


def test_without_workers_training_runs_in_the_calling_process(in_process: tuple[Path, Any]) -> None:
    folder, seen = in_process
    assert seen == {"pid": seen["pid"], "inside": [seen["pid"]], "ray": False}
    assert len(rows_of(folder)) == EPOCHS


def assert_follows(found: list[Row], expected: list[Row]) -> None:
    """The losses of every epoch are equal up to float32 rounding."""
    assert len(found) == len(expected) == EPOCHS
    for row, other in zip(found, expected, strict=True):
        for key in ("epoch", "learning_rate", *(k for k in row if k.startswith("loss"))):
            assert row[key] == pytest.approx(other[key], rel=1e-4), (row["epoch"], key)


@pytest.mark.ray
@pytest.mark.slow
def test_one_worker_does_exactly_what_no_worker_does(
    in_process: tuple[Path, Any],
    settings: Config,
    ray: None,  # noqa: ARG001
) -> None:
    folder = run(settings.override({"run.name": "on-one", "launch.workers": 1}))
    assert rows_of(folder) == rows_of(in_process[0])
    assert_same_weights(folder, in_process[0])


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_follow_the_losses_of_one(in_process: tuple[Path, Any], on_two: Path) -> None:
    assert_follows(rows_of(on_two), rows_of(in_process[0]))


@pytest.mark.ray
@pytest.mark.slow
def test_a_workers_usage_error_reaches_the_user_unchanged(
    settings: Config,
    ray: None,  # noqa: ARG001
) -> None:
    # Damaged weights are not seen before a worker reads them.
    weights = Path(settings.run.folder) / "weights.pth"
    weights.write_bytes(b"no weights")
    changes = {
        "run.name": "mistaken",
        "launch.workers": 1,
        "launch.max_failures": 0,
        "model.encoder_weights": str(weights),
    }
    with pytest.raises(UsageError) as raised:
        run(settings.override(changes))
    assert type(raised.value) is UsageError
    assert str(raised.value).startswith(str(weights)) or "encoder_weights" in str(raised.value)
    assert "Traceback" not in str(raised.value)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"launch.workers": 3}, "launch.workers: 3 workers need 3 CPU, and the cluster has 2: "),
        ({"launch.cpus_per_worker": 3}, "1 workers need 3 CPU, and the cluster has 2: "),
        ({"launch.gpus_per_worker": 9}, "1 workers need 9 GPU, and the cluster has "),
    ],
)
def test_a_run_too_large_for_the_cluster_is_refused(
    settings: Config,
    ray: None,  # noqa: ARG001
    changes: dict[str, int],
    words: str,
) -> None:
    with pytest.raises(UsageError, match=words):
        run(settings.override({"run.name": "too-large", "launch.workers": 1} | changes))


@pytest.mark.ray
def test_room_is_counted_in_runs(tiny: Config, ray: None) -> None:  # noqa: ARG001
    rooms = [check_room(tiny.override({"launch.workers": n})) for n in (0, 1, 2)]
    assert rooms == [1, 2, 1]


@pytest.mark.ray
def test_a_run_is_refused_after_waiting_for_nodes_in_vain(
    settings: Config,
    ray: None,  # noqa: ARG001
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes = {"run.name": "waiting", "launch.workers": 3, "launch.wait_minutes": 0.05}
    began = time.monotonic()
    with pytest.raises(UsageError, match="3 workers need 3 CPU, and the cluster has 2"):
        run(settings.override(changes))
    assert time.monotonic() - began >= 3
    assert capsys.readouterr().out == "waiting for nodes: the cluster has 2 of 3 CPU\n"


def test_divergence_reaches_the_user_in_words(settings: Config) -> None:
    with pytest.raises(TrainingFailed, match="training diverged at epoch 1, step 1"):
        run(settings.override({"run.name": "diverging", "loss.word": 1e300}))


def test_a_resumed_run_ends_where_the_uninterrupted_one_ends(
    settings: Config, in_process: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings.override({"run.name": "interrupted"})

    def until_the_third(config: Config, folder: Path, worker: Worker, observer: Observer) -> None:
        def stop(row: Row) -> None:
            observer.epoch(row)
            if row["epoch"] == 3:
                raise Interrupted

        train(config, folder, worker, Recorder(stop))

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "train", until_the_third)
        with pytest.raises(Interrupted):
            run(config)
    folder = Path(config.run.folder) / "interrupted"
    assert len(rows_of(folder)) == 3
    console = Console(record=True, width=40, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        run_training(config, console)
    printed = console.export_text().splitlines()
    assert printed[0] == f"{folder}: resuming after epoch 3"
    assert [line.partition(" ")[2].split("/")[0] for line in printed[1:]] == [
        str(epoch) for epoch in range(4, EPOCHS + 1)
    ]
    assert rows_of(folder) == rows_of(in_process[0])
    assert_same_weights(folder, in_process[0])


def test_a_finished_run_stays_as_it_is(settings: Config, in_process: tuple[Path, Any]) -> None:
    def state() -> dict[Path, int]:
        files = (
            path for path in in_process[0].rglob("*") if path.name not in (CONFIG_FILE, ".lock")
        )
        return {path: path.stat().st_mtime_ns for path in files}

    before = state()
    console = Console(record=True, quiet=False, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        checkpoint = run_training(settings.override({"run.name": "alone"}), console)
    assert (
        console.export_text() == f"{in_process[0]}: already trained for 10 epochs; nothing to do\n"
    )
    assert checkpoint == Checkpoint.open(in_process[0])
    assert state() == before


def test_a_changed_configuration_names_the_key(
    settings: Config, in_process: tuple[Path, Any]
) -> None:
    text = (in_process[0] / CONFIG_FILE).read_text()
    changed = settings.override({"run.name": "alone", "loss.tag": 2.5, "training.seed": 8})
    with pytest.raises(UsageError) as raised:
        run(changed)
    assert str(in_process[0]) in str(raised.value)
    assert "loss.tag: 1.0 -> 2.5; training.seed: 0 -> 8" in str(raised.value)
    assert (in_process[0] / CONFIG_FILE).read_text() == text
    # How it is launched and where the dataset lies may change.
    moved = in_process[0].parent / "moved"
    shutil.copytree(settings.data.path, moved)
    run(settings.override({"run.name": "alone", "data.path": str(moved), "launch.max_failures": 7}))


def test_more_epochs_for_a_finished_run_take_the_command_in_the_message(
    settings: Config, in_process: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError) as raised:
        run(settings.override({"run.name": "alone", "training.epochs": EPOCHS + 2}))
    head, command = str(raised.value).splitlines()
    assert f"(training.epochs: {EPOCHS} -> {EPOCHS + 2})" in head
    program, *arguments = shlex.split(command)
    assert program == "raymed"
    assert main(arguments) == 0, capsys.readouterr().err
    more = Checkpoint.open(in_process[0].parent / f"alone-{EPOCHS + 2}")
    assert len(rows_of(in_process[0].parent / f"alone-{EPOCHS + 2}")) == 2
    assert more.config.training.start_from == str(in_process[0])
    # With other changes, or fewer epochs, it would not be the same run.
    for changes in ({"training.epochs": EPOCHS + 2, "loss.tag": 2.5}, {"training.epochs": 1}):
        with pytest.raises(UsageError, match=r"Choose another run.name, or delete that folder$"):
            run(settings.override({"run.name": "alone"} | changes))


def test_other_data_under_a_runs_name_are_refused(
    settings: Config, in_process: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    other = tmp_path / "other"
    prepare_phantom(other, 30, seed=1)
    with pytest.raises(UsageError, match=f"{other}: its content is not what .*alone was trained"):
        run(settings.override({"run.name": "alone", "data.path": str(other)}))
    assert len(rows_of(in_process[0])) == EPOCHS


def test_a_folder_with_other_content_is_left_alone(tiny: Config, tmp_path: Path) -> None:
    config = tiny.override({"run.folder": str(tmp_path)})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="run: exists but is not a run folder; choose another"):
        run(config)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]
    (tmp_path / "file").write_text("a file")
    with pytest.raises(UsageError, match="file: exists but is not a run folder"):
        run(config.override({"run.name": "file"}))
    with pytest.raises(UsageError, match=r"cannot be written \(Not a directory\)"):
        run(config.override({"run.folder": str(tmp_path / "file")}))


def test_paths_are_made_absolute_and_uris_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = with_absolute_paths(Config())
    assert plain.data.path == str(tmp_path / "data/phantom")
    assert plain.run.folder == str(tmp_path / "runs")
    assert plain.model.encoder_weights == "imagenet"
    changes = {"data.path": "s3://bucket/data", "model.encoder_weights": "vgg.pth"}
    other = with_absolute_paths(Config().override(changes))
    assert other.data.path == "s3://bucket/data"
    assert other.model.encoder_weights == str(tmp_path / "vgg.pth")
    assert configuration.load(None, ["data.path=s3://bucket/data"]).data == other.data


def test_a_run_without_an_epoch_may_start_with_another_configuration(
    tiny: Config, tmp_path: Path
) -> None:
    config = tiny.override({"run.folder": str(tmp_path), "training.epochs": 1})
    with pytest.raises(UsageError, match="diverged"):
        run_training(config.override({"loss.word": 1e38, "loss.tag": 1e38}), Console(quiet=True))
    assert run_training(config, Console(quiet=True)).epoch == 1
