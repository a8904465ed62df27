"""Ctrl-C and SIGTERM bring every command to rest at once, whatever it does, and in one line."""

import fcntl
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
import torch
from PIL import Image

from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.training.features import LOCK_FILE, freeze_encoder
from raymed.training.worker import Worker
from tests.support.recording import Recorder

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
INT, TERM = SIGNALS
SOON_S = 60.0
"""Long for coming to rest on a busy machine, and short beside what is interrupted."""
HANG = """
import sys, time
import {module} as module
def hang(*arguments, **others):
    print("there", flush=True)
    time.sleep(600)
module.{name} = hang
from raymed.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""The command with a function that takes ten minutes."""
LISTENING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""What a shell starts in the background ignores Ctrl-C, and so would all below it. (A function that
`Popen` calls in the child would have this process forked, which Ray's connection does not bear.)"""


def ended(process: "subprocess.Popen[str]", number: int, code: int) -> str:
    """Send a signal, and give the one line that the command ends with."""
    process.send_signal(number)
    try:
        _, error = process.communicate(timeout=SOON_S)
    finally:
        process.kill()
    assert process.returncode == code, error
    assert re.fullmatch(r"raymed: [^\n]*\n", error)
    return error


def printed(process: "subprocess.Popen[str]", words: str) -> None:
    """Wait until the command has printed a line with these words."""
    stream: IO[str] | None = process.stdout
    assert stream is not None
    for line in stream:
        if words in line:
            return
    raise AssertionError(process.communicate())


def start(command: list[str], **environment: str) -> "subprocess.Popen[str]":
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-c", LISTENING, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env | environment,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name", "arguments", "signalled"),
    [
        ("raymed.data.sources.phantom", "draw", ["prepare", "phantom", "out={out}"], TERM),
        ("raymed.evaluation", "write_reports", ["evaluate", "{run}", "split=val"], TERM),
        ("raymed.evaluation", "score_file", ["evaluate", "{run}", "split=val"], INT),
        ("raymed.prediction", "generate", ["predict", "{run}", "{image}", "out={out}"], TERM),
        ("raymed.figures", "ReportGenerator", ["figure", "4", "{run}", "out={out}"], TERM),
        ("raymed.training.objective", "loss_terms", ["train", "{file}", "run.folder={out}"], TERM),
        ("raymed.tuning.page", "open_study", ["report", "{sweep}"], TERM),
        ("raymed.tuning.finetune", "open_study", ["finetune", "{sweep}"], INT),
        ("raymed.tuning.sweep", "baseline_scores", ["tune", "{sweep}/sweep.yaml"], TERM),
    ],
)
def test_every_command_ends_at_once_and_leaves_nothing(
    tiny: Config,
    trained: Path,
    tmp_path: Path,
    module: str,
    name: str,
    arguments: list[str],
    signalled: tuple[int, int],
) -> None:
    out, image = tmp_path / "out", tmp_path / "image.png"
    Image.new("L", (32, 32)).save(image)
    (tmp_path / "run.yaml").write_text(tiny.to_yaml())
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    changes = {
        "run.folder": str(tmp_path),
        "run.name": "sweep",
        "launch.workers": 1,
        "tune.space": {"loss.tag": {"uniform": [1, 2]}},
    }
    (sweep / "sweep.yaml").write_text(tiny.override(changes).to_yaml())
    named = {
        "out": out,
        "run": trained,
        "image": image,
        "file": tmp_path / "run.yaml",
        "sweep": sweep,
    }
    hang = HANG.format(module=module, name=name)
    process = start([sys.executable, "-c", hang, *(a.format(**named) for a in arguments)])
    printed(process, "there")
    error = ended(process, *signalled)
    assert ("interrupted" if signalled == INT else "ended by SIGTERM") in error
    assert not list(tmp_path.rglob("*.partial"))
    assert arguments[0] == "train" or not out.exists()


DOCTOR = """
import sys
from raymed import doctor
from raymed.cli import main
doctor.IMPORT_TORCH = "import time; time.sleep(600)"
doctor._memory = lambda: print("there", flush=True) or []
sys.exit(main(["doctor"]))
"""


@pytest.mark.parametrize("signalled", SIGNALS)
def test_the_doctor_waits_for_no_library(signalled: tuple[int, int]) -> None:
    process = start([sys.executable, "-c", DOCTOR])
    printed(process, "there")
    ended(process, *signalled)


@pytest.fixture
def ray_files() -> Iterator[Path]:
    """A folder for Ray's files; its sockets must have shorter names than `tmp_path` gives."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "number", "code"),
    [(0, *INT), (0, *TERM), pytest.param(1, *TERM, marks=pytest.mark.ray)],
)
def test_while_the_features_are_computed(
    tiny: Config,
    tmp_path: Path,
    ray_files: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    number: int,
    code: int,
) -> None:
    """As long as another process computes them, which here never ends."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    changes = {
        "model.train_encoder": "none",
        "launch.workers": workers,
        "run.folder": str(tmp_path / "runs"),
    }
    config = tiny.override(changes)
    dataset = PreparedDataset.open(config.data.path)
    splits = {name: dataset.split(name) for name in ("train", "val")}
    worker = Worker(torch.device("cpu"))
    frozen = freeze_encoder(config, dataset, splits, None, worker, Recorder())
    folder = frozen.encoder_file.parent
    for file in folder.glob("*.arrow"):
        file.unlink()
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    with (folder / LOCK_FILE).open("a+b") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        command = [sys.executable, "-m", "raymed", "train", str(tmp_path / "run.yaml")]
        process = start(command, RAY_TMPDIR=str(ray_files))
        printed(process, "computing the frozen encoder's features of 27 images")
        ended(process, number, code)
    assert not list(folder.glob("*.arrow"))
    assert not list(folder.glob(".*.partial"))
