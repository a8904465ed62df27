import numpy as np
import pytest
from pycocoevalcap.cider.cider import Cider

from raymed.metrics import baselines
from raymed.metrics.baselines import best_constant

SENTENCES = (
    "the heart is normal in size",
    "heart size is normal",
    "the lungs are clear",
    "no pleural effusion or pneumothorax",
    "there is a small left pleural effusion",
    "the heart is enlarged",
    "no acute bony abnormality",
    "a nodule is seen in the right upper lobe",
)


def draw_reports(seed: int, count: int) -> list[str]:
    random = np.random.default_rng(seed)
    chosen = [random.choice(len(SENTENCES), size=random.integers(1, 5)) for _ in range(count)]
    return [" ".join(SENTENCES[sentence] for sentence in sentences) for sentences in chosen]


def cider_of_constant(report: str, references: list[str]) -> float:
    truth = {image: [reference] for image, reference in enumerate(references)}
    return Cider().compute_score(truth, {image: [report] for image in truth})[0]


@pytest.mark.parametrize("seed", range(4))
def test_best_constant_is_the_best_of_all_reports_by_pycocoevalcap(seed):
    references = draw_reports(seed, 60)
    scores = {report: cider_of_constant(report, references) for report in references}
    best = best_constant(references)
    assert scores[best] == pytest.approx(max(scores.values()), abs=1e-12)
    assert len(set(scores.values())) > 10
    assert best == best_constant(list(references))


def test_best_constant_counts_a_report_as_often_as_it_occurs():
    references = ["a b c d e"] * 2 + ["f g h i j"] * 3 + ["k l m n o"]
    assert best_constant(references) == "f g h i j"
    assert best_constant(references[::-1] + ["a b c d e"] * 2) == "a b c d e"


def test_candidates_are_the_frequent_and_the_central(monkeypatch):
    monkeypatch.setattr(baselines, "CANDIDATES", 1)
    alike = [f"the heart is normal in size and {word}" for word in ("calm", "even", "fine", "good")]
    others = ["a b c d e", "f g h i j"]
    assert best_constant(["no x y"] * 2 + alike + others) in alike  # the central one
    assert best_constant(["no x y"] * 4 + alike[:2] + others) == "no x y"  # the frequent one


def test_ties_between_reports_go_to_the_first():
    assert best_constant(["b a", "d c", "f e"]) == "b a"
    assert best_constant(["only one"]) == "only one"
    assert best_constant(["", ""]) == ""
    with pytest.raises(ValueError, match="got none"):
        best_constant([])


class Pixels:
    """A split's images; at most as many are read at a time as may be."""

    def __init__(self, pixels: np.ndarray) -> None:
        self._pixels = pixels

    def __len__(self) -> int:
        return len(self._pixels)

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        assert len(rows) <= baselines.CHUNK
        return self._pixels[rows]


def nearest(train: np.ndarray, images: np.ndarray, *apart: np.ndarray) -> np.ndarray:
    of_each = [baselines.BlockMeans(Pixels(each)) for each in (train, images)]
    return baselines.nearest(*of_each, len(images), apart or None)


def loop_block_means(image: np.ndarray) -> np.ndarray:
    height, width = image.shape
    rows, columns = min(32, height), min(32, width)
    means = []
    for row in range(rows):
        for column in range(columns):
            top, bottom = row * height // rows, (row + 1) * height // rows
            left, right = column * width // columns, (column + 1) * width // columns
            block = [int(image[y, x]) for y in range(top, bottom) for x in range(left, right)]
            means.append(sum(block) / len(block))
    standard = np.array(means) - np.mean(means)
    return standard / np.std(standard) if np.std(standard) > 1e-6 else standard * 0


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (50, 37), (40, 9), (5, 7)])
def test_nearest_equals_a_loop(size, monkeypatch):
    monkeypatch.setattr(baselines, "CHUNK", 5)  # several chunks, the last not full
    monkeypatch.setattr(baselines, "QUERIES", 4)
    random = np.random.default_rng(0)
    train = random.integers(0, 256, (13, *size), dtype=np.uint8)
    noise = random.integers(-60, 61, (7, *size))
    images = np.clip(train[[12, 0, 3, 3, 9, 1, 5]] + noise, 0, 255).astype(np.uint8)
    images[6] = random.integers(0, 256, size, dtype=np.uint8)
    expected = []
    for image in images:
        distances = [
            np.sqrt(((loop_block_means(image) - loop_block_means(other)) ** 2).sum())
            for other in train
        ]
        expected.append(int(np.argmin(distances)))
    assert nearest(train, images).tolist() == expected
    assert expected[:6] == [12, 0, 3, 3, 9, 1]


def test_ties_between_images_go_to_the_first(monkeypatch):
    monkeypatch.setattr(baselines, "CHUNK", 4)
    random = np.random.default_rng(1)
    few = random.integers(0, 256, (3, 48, 48), dtype=np.uint8)
    assert nearest(few[[2, 0, 1, 0, 1, 2, 0]], few).tolist() == [1, 2, 0]


def test_images_of_the_same_group_are_not_compared(monkeypatch):
    monkeypatch.setattr(baselines, "CHUNK", 2)
    random = np.random.default_rng(4)
    train = random.integers(0, 256, (5, 32, 32), dtype=np.uint8)
    train[[3, 4]] = train[0]
    study = np.array([7, 8, 9, 7, 5])
    assert nearest(train, train).tolist() == [0, 1, 2, 0, 0]
    found = nearest(train, train, study, study)
    assert found[[0, 3, 4]].tolist() == [4, 4, 0]
    assert not (study[found] == study).any()
    assert nearest(train, train, study * 0, study * 0).tolist() == [-1] * 5


def test_brightness_and_contrast_do_not_matter():
    random = np.random.default_rng(2)
    train = random.integers(0, 100, (6, 32, 32), dtype=np.uint8)
    assert nearest(train, train[::-1] * 2 + 50).tolist() == [5, 4, 3, 2, 1, 0]


def test_an_image_of_one_grey_is_nearest_to_its_like():
    random = np.random.default_rng(3)
    train = random.integers(0, 256, (4, 30, 30), dtype=np.uint8)
    train[2] = 7
    assert nearest(train, np.full((1, 30, 30), 200, dtype=np.uint8)).tolist() == [2]


def test_images_that_cannot_be_compared_are_refused():
    images = np.zeros((2, 8, 8), dtype=np.uint8)
    assert nearest(images, images[:0]).shape == (0,)
    with pytest.raises(ValueError, match="got none"):
        nearest(images[:0], images)
    with pytest.raises(ValueError, match="64 numbers each in training and 32"):
        nearest(images, images[:, :4])
