"""Memory that the metrics take per further image, measured by tracemalloc, as NumPy supports it."""

import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from raymed.metrics import baselines, cider, meteor, ngrams
from raymed.metrics.baselines import best_constant, nearest
from raymed.metrics.meteor import MeteorUnavailable
from tests.support.report_scores import report_scores

WORDS = np.array([f"word{number}" for number in range(500)])


class Reports:
    """Distinct reports of 25 words, generated anew in each iteration."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self._count, self._seed = count, seed

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        random = np.random.default_rng(self._seed)
        for _ in range(self._count):
            yield " ".join(WORDS[(500 * random.random(25) ** 2).astype(int)])


class Images:
    def __init__(self, count: int) -> None:
        self._some = np.random.default_rng(0).integers(0, 256, (64, 16, 16), dtype=np.uint8)
        self._count = count

    def __len__(self) -> int:
        return self._count

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        return self._some[rows % 64]


def no_meteor(*_: object, **__: object) -> float:
    raise MeteorUnavailable("no Java here")


def peak(work: Callable[[int], object], count: int) -> int:
    tracemalloc.start()
    try:
        work(count)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def described(*counts: int) -> list[baselines.BlockMeans]:
    return [baselines.BlockMeans(Images(count)) for count in counts]


def cut(count: int) -> list[Reports]:
    return [Reports(count, seed) for seed in (1, 2)]


@pytest.mark.parametrize(
    ("work", "few", "bytes_each"),
    [
        (lambda count: best_constant(Reports(count)), 400, 300),
        (lambda count: cider.ciders(Reports(count), cut(count)), 400, 100),
        (lambda count: report_scores(Reports(count), Reports(count, 1)), 400, 100),
        (lambda count: nearest(*described(count, 9), 9), 2000, 10),
        (lambda count: nearest(*described(9, count), count), 2000, 50),
    ],
    ids=["constant", "cider", "captions", "nearest in", "nearest of"],
)
def test_memory_hardly_grows_with_the_images(
    work: Callable[[int], object], few: int, bytes_each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meteor, "align", no_meteor)
    # Few enough at a time that the smaller number fills every buffer too.
    monkeypatch.setattr(baselines, "CANDIDATES", 20)
    monkeypatch.setattr(baselines, "CHUNK", 64)
    monkeypatch.setattr(baselines, "QUERIES", 256)
    monkeypatch.setattr(ngrams, "CHUNK", 32)
    work(10)
    growth = peak(work, 2 * few) - peak(work, few)
    assert growth / few < bytes_each
