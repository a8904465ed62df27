import json
import os
import shutil
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raymed.data import dataset
from raymed.data.dataset import PreparedDataset
from raymed.data.examples import Example, Finding
from raymed.errors import UsageError
from tests.support.prepared import prepare_examples

SIZE = 8


def pixels_of(image_id: str) -> np.ndarray:
    seed = int(image_id.removeprefix("i"))
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE)).astype(np.uint8)


def example(number: int) -> Example:
    findings = (Finding("heart", 0.1, 0.2, 0.3, 0.4),) if number % 2 else ()
    return Example(
        f"i{number}",
        f"s{number // 2}",
        pixels_of(f"i{number}"),
        f"First {'abc'[number % 3]}. Second one.",
        ("heart", "lung")[: 1 + number % 2],
        view="frontal" if number % 2 else None,
        findings=findings,
    )


@pytest.fixture(autouse=True)
def _small_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(dataset, "_BATCH_ROWS", 8)
    monkeypatch.setattr("raymed.data.parts.PART_ROWS", 11)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "prepared"
    prepare_examples([example(number) for number in range(60)], path, image_size=SIZE)
    return path


def test_splits_hold_what_was_prepared(folder: Path) -> None:
    opened = PreparedDataset.open(folder)
    seen: list[str] = []
    for name, count in opened.info.counts.items():
        part = opened.split(name)
        assert len(part) == count
        assert part.pixels(np.arange(count)).tobytes() == b"".join(
            pixels_of(image_id).tobytes() for image_id in part.image_ids
        )
        for row, image_id in enumerate(part.image_ids):
            given = example(int(image_id[1:]))
            assert part.studies[row] == given.study
            assert part.views[row] == given.view
            assert part.tags[row] == list(given.tags)
            assert part.findings[row] == list(given.findings)
            assert part.references[row] == given.report.lower().replace(".", "")
            assert part.sentences[row] == given.report.lower().rstrip(".").split(". ")
        seen += part.image_ids
        assert part.image_ids[-1] == list(part.image_ids)[-1]
        assert part.sentences[1:4] == list(part.sentences)[1:4]
        with pytest.raises(IndexError):
            part.tags[count]
    assert sorted(seen) == sorted(f"i{number}" for number in range(60))
    assert opened.tags == ["heart", "lung"]
    assert opened.words == json.loads((folder / "words.json").read_text())


def test_pixels_in_any_order_and_twice(folder: Path) -> None:
    part = PreparedDataset.open(folder).split("train")
    rows = np.array([len(part) - 1, 0, 8, 8, 7])
    gathered = part.pixels(rows)
    assert (gathered.shape, gathered.dtype) == ((5, SIZE, SIZE), np.uint8)
    for place, row in enumerate(rows):
        np.testing.assert_array_equal(gathered[place], pixels_of(part.image_ids[row]))
    assert part.pixels(np.array([], int)).shape == (0, SIZE, SIZE)
    for wrong in (-1, len(part)):
        with pytest.raises(IndexError):
            part.pixels(np.array([wrong]))


def test_cache_is_built_once(folder: Path, tmp_path: Path) -> None:
    PreparedDataset.open(folder).split("val")
    (cached,) = (tmp_path / "cache").rglob("*.arrow")
    before = cached.stat().st_mtime_ns
    PreparedDataset.open(folder).split("val")
    assert cached.stat().st_mtime_ns == before
    assert sorted(path.name for path in cached.parent.iterdir()) == ["val.arrow", "val.lock"]


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_damaged_cache_is_built_again(folder: Path, tmp_path: Path, damage: str) -> None:
    opened = PreparedDataset.open(folder)
    expected = opened.split("val").pixels(np.arange(opened.info.counts["val"]))
    cache = tmp_path / "cache/raymed" / opened.info.content_hash
    content = (cache / "val.arrow").read_bytes()
    if damage == "other":
        opened.split("train")
        shutil.copy(cache / "train.arrow", cache / "val.arrow")
    else:
        (cache / "val.arrow").write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    again = opened.split("val").pixels(np.arange(len(expected)))
    np.testing.assert_array_equal(again, expected)


def use(barrier: Barrier) -> None:
    """Let no process of a pool go on before all have found that there is no cache."""
    look, fill = dataset.map_batches, PreparedDataset._fill_cache

    def look_together(*of: Any) -> Any:
        found = look(*of)
        dataset.map_batches = look
        barrier.wait()
        return found

    def count(self: PreparedDataset, *of: Any) -> None:
        fills.append(os.getpid())
        fill(self, *of)

    fills.clear()
    dataset.map_batches, PreparedDataset._fill_cache = look_together, count  # type: ignore


fills: list[int] = []


def open_train(folder: str) -> tuple[bytes, list[str], list[int]]:
    part = PreparedDataset.open(folder).split("train")
    return part.pixels(np.arange(len(part))).tobytes(), list(part.references), fills


def test_of_four_processes_that_open_it_at_once_one_fills(folder: Path, tmp_path: Path) -> None:
    context = get_context("spawn")
    with context.Pool(4, use, (context.Barrier(4),)) as pool:
        opened = pool.map(open_train, [str(folder)] * 4, chunksize=1)
    assert len([each for *_, filled in opened for each in filled]) == 1
    expected = open_train(str(folder))[:2]
    assert [each[:2] for each in opened] == [expected] * 4
    assert not list((tmp_path / "cache").rglob(".*.partial"))


def test_what_a_killed_process_left_is_removed(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache/raymed" / PreparedDataset.open(folder).info.content_hash
    cache.mkdir(parents=True)
    (cache / ".val.arrow.0123.partial").write_text("half of it")
    PreparedDataset.open(folder).split("val")
    assert sorted(path.name for path in cache.iterdir()) == ["val.arrow", "val.lock"]


def test_unwritable_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"cannot write the cache.*XDG_CACHE_HOME"):
        PreparedDataset.open(folder).split("val")


def change_version(folder: Path) -> None:
    info = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**info, "schema": 99}))


def flip_a_byte(folder: Path) -> None:
    path = folder / "train-00001.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "not a prepared dataset"),
        (lambda folder: os.remove(folder / "dataset.json"), "not a prepared dataset"),
        (lambda folder: (folder / "dataset.json").write_text("{"), "dataset.json is missing or"),
        (lambda folder: (folder / "dataset.json").write_text('{"schema": 2}'), "is missing or dam"),
        (change_version, "schema version 99, but this version of raymed reads version 2"),
        (lambda folder: os.remove(folder / "words.json"), "words.json is missing or damaged"),
        (lambda folder: os.remove(folder / "train-00001.parquet"), "train-00001.parquet is miss"),
        (flip_a_byte, "train-00001.parquet is missing or damaged"),
        (
            lambda folder: shutil.copy(
                folder / "test-00000.parquet", folder / "train-00001.parquet"
            ),
            "train-00001.parquet is missing or damaged",
        ),
    ],
)
def test_damage_is_named(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    with pytest.raises(UsageError, match=message):
        PreparedDataset.open(folder).split("train")


def test_unknown_split(folder: Path) -> None:
    with pytest.raises(UsageError, match="no split 'dev'; it has train, val, test"):
        PreparedDataset.open(folder).split("dev")
