import json
import os
import pickle
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from raymed.data.prepare import prepare_source
from raymed.data.sources.table_columns import TableSettings
from raymed.errors import UsageError
from raymed.launch.prepare import _windows, on_ray, run_prepare
from tests.support.dicom_files import dataset, saved
from tests.support.object_stores import serving_s3

COUNT = 300
"""More than two shards' images."""


def quiet() -> Console:
    return Console(quiet=True)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PNG, DICOM, missing and damaged images in a table that is not sorted by study."""
    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    with (folder / "t.jsonl").open("w") as file:
        for number in range(COUNT):
            pixels = rng.integers(0, 256, (20, 14)).astype(np.uint8)
            name = f"{number}.png"
            if number % 3 == 0:
                name = f"{number}.dcm"
                saved(folder / name, dataset(pixels))
            elif number % 50 == 7:
                (folder / name).write_text("no image")
            elif number % 50 != 8:
                Image.fromarray(pixels).save(folder / name)
            report = f"Heart normal. Number {'abcdefghij'[number % 10]}." if number % 41 else ""
            row = {"image": name, "report": report, "study": f"s{number % 90}"}
            file.write(json.dumps(row) + "\n")
    return folder / "t.jsonl"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_large_pieces_end_a_window_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raymed.launch.prepare._WINDOW_BYTES", 3000)
    for size, expected in ((1000, [3, 3, 1]), (10, [4, 3]), (9000, [1] * 7)):
        windows = list(_windows([bytes([n]) * size for n in range(7)], 4))
        assert [len(window) for window in windows] == expected
        pieces = [pickle.loads(item["piece"]) for window in windows for item in window]
        assert pieces == [bytes([n]) * size for n in range(7)]


@pytest.mark.ray
@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize("workers", [None, 1])
def test_on_ray_every_byte_is_as_in_one_process(
    tmp_path: Path, table: Path, workers: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(table.parent)
    alone = run_prepare("table", "t.jsonl", settings(tmp_path / "alone", workers=0), quiet())
    spread = run_prepare("table", "t.jsonl", settings(tmp_path / "ray", workers=workers), quiet())
    assert alone == spread
    assert alone.prepared.images + sum(alone.rejected.values()) == COUNT
    assert len(alone.rejected) == 3
    assert files_of(tmp_path / "alone") == files_of(tmp_path / "ray")
    assert len(files_of(tmp_path / "ray")) >= 7


@pytest.mark.ray
@pytest.mark.usefixtures("ray")
def test_ray_writes_into_a_store(tmp_path: Path, table: Path) -> None:
    local = run_prepare("table", str(table), settings(tmp_path / "local", workers=0), quiet())
    with serving_s3() as server:
        out = server.root / "prepared"
        options = {"out": str(out), "image_size": 16}
        stored = run_prepare("table", str(table), TableSettings.model_validate(options), quiet())
        found = {place.name: b"".join(place.blocks()) for place in out.iterdir()}
    assert stored == local
    assert found == files_of(tmp_path / "local")


def settings(out: Path, **changes: object) -> TableSettings:
    return TableSettings.model_validate({"out": str(out), "image_size": 16, **changes})


def double(number: int) -> tuple[int, int]:
    return 2 * number, os.getpid()


def fails_at_three(number: int) -> int:
    if number == 3:
        raise UsageError("three is not liked")
    return number


def dies_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.ray
@pytest.mark.usefixtures("ray")
def test_pieces_are_spread_and_taken_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raymed.launch.prepare.WINDOW", 20)
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(200):
            taken.append(number)
            yield number

    results = on_ray()(double, numbers())
    first = next(results)
    assert len(taken) <= 40, "one window at work, one made ready"
    rest = list(results)
    assert sorted(number for number, _ in [first, *rest]) == [2 * n for n in range(200)]
    processes = {process for _, process in rest}
    assert os.getpid() not in processes
    assert len(processes) >= 2, "an actor for each processor; Ray may replace an idle one"


@pytest.mark.ray
@pytest.mark.usefixtures("ray")
def test_errors_and_deaths_are_reported(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="three is not liked"):
        list(on_ray()(fails_at_three, range(6)))
    with pytest.raises(UsageError, match="3 processes died while processing the same images"):
        list(on_ray()(dies_at_three, range(6)))
    capfd.readouterr()


def test_images_that_the_workers_do_not_see(tmp_path: Path, table: Path) -> None:
    folder, hidden = table.parent, table.parent.with_name("hidden")

    def elsewhere(function: Callable[[Any], Any], pieces: Iterable[Any]) -> Iterator[Any]:
        for piece in pieces:
            folder.rename(hidden)
            try:
                result = function(piece)
            finally:
                hidden.rename(folder)
            yield result

    with pytest.raises(
        UsageError, match=r"1\.png: exists here, but is not visible to a machine of the cluster"
    ):
        prepare_source("table", str(table), settings(tmp_path / "out"), quiet(), elsewhere)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_the_workers_do_not_see(tmp_path: Path, table: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()

    def elsewhere(function: Callable[[Any], Any], pieces: Iterable[Any]) -> Iterator[Any]:
        for piece in pieces:
            inside.rename(tmp_path / "hidden")
            try:
                result = function(piece)
            finally:
                (tmp_path / "hidden").rename(inside)
            yield result

    with pytest.raises(
        UsageError, match=r"this folder is not visible to .*: set `out` to a folder"
    ):
        prepare_source("table", str(table), settings(inside / "out"), quiet(), elsewhere)
