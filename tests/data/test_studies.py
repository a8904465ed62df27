"""Examples that are studies: grouped, batched and described as in plain loops."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from raymed.data.batches import TokenisedSplit
from raymed.data.dataset import PreparedDataset, Split
from raymed.data.examples import Example
from raymed.data.studies import StudySplit, _grouped, as_images, by_example, examples
from raymed.data.vocabulary import Vocabulary
from raymed.image_tensors import StudyImages
from raymed.metrics.baselines import BlockMeans
from tests.support.prepared import prepare_examples
from tests.support.study_films import prepare_studies

MOST = 2


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PreparedDataset]:
    folder = tmp_path_factory.mktemp("studies")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        prepare_studies(folder / "prepared", 30)
        yield PreparedDataset.open(folder / "prepared")


@pytest.fixture(scope="module")
def by_image(dataset: PreparedDataset) -> Split:
    return dataset.split("train")


def rows_by_hand(split: Split) -> list[list[int]]:
    """The rows of the first images of each study."""
    rows: dict[str, list[int]] = {}
    for row, study in enumerate(split.studies):
        rows.setdefault(study, []).append(row)
    return [each[:MOST] for each in rows.values()]


def test_a_study_is_one_example(by_image: Split) -> None:
    split, rows = StudySplit(by_image, MOST), rows_by_hand(by_image)
    assert {len(each) for each in rows} == {1, 2}
    assert len(split) == len(rows) < len(by_image)
    for number, own in enumerate(rows):
        assert split.rows_of(number).tolist() == own
        assert split.image_ids[number] == ",".join(by_image.image_ids[row] for row in own)
        assert split.studies[number] == by_image.studies[own[0]]
        assert split.sentences[number] == by_image.sentences[own[0]]
        assert split.references[number] == " ".join(by_image.sentences[own[0]])
        assert split.tags[number] == by_image.tags[own[0]]
    assert list(split.studies) == [split.studies[-len(rows) + n] for n in range(len(rows))]
    assert split.references[1:3] == [split.references[1], split.references[2]]
    with pytest.raises(IndexError):
        split.studies[len(rows)]
    chosen = np.array([3, 0, 3])
    pixels = by_image.pixels(np.arange(len(by_image)))
    for picture, number in zip(split.pictures(chosen), chosen, strict=True):
        assert np.array_equal(picture, pixels[rows[number]])
    more = [n for n in map(list(by_image.studies).count, split.studies) if n > MOST]
    assert split.unread() == (len(more), sum(more) - MOST * len(more))
    assert split.has_several()
    ids = {by_image.image_ids[row]: number for number, own in enumerate(rows) for row in own}
    assert split.numbers() == ids


def test_one_image_of_a_study_is_the_split_itself(by_image: Split) -> None:
    assert examples(by_image, 1) is by_image


def test_images_of_one_study_with_two_reports_are_two_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    grey = np.full((8, 8), 7, np.uint8)
    texts = ["The heart is big.", "No nodule.", "The heart is big."]
    tags = [("heart",), ("normal",), ("big", "heart")]
    films = [
        Example(f"{n}.png", "s", grey, text, of_image, record=text, split="train")
        for n, (text, of_image) in enumerate(zip(texts, tags, strict=True))
    ]
    others = [
        Example(f"{name}.png", name, grey, "No mass.", ("normal",), split=name)
        for name in ("val", "test")
    ]
    prepare_examples([*films, *others], tmp_path / "d", image_size=8, split="given")
    by_image = PreparedDataset.open(tmp_path / "d").split("train")
    split = StudySplit(by_image, 3)
    assert list(split.image_ids) == ["0.png,2.png", "1.png"]
    assert list(split.references) == ["the heart is big", "no nodule"]
    assert list(map(sorted, split.tags)) == [["big", "heart"], ["normal"]]
    codes = [split.codes.categories.tags[tag] for tag in split.codes[0].tags]
    assert codes == split.tags[0]


def test_groups_are_those_of_a_loop() -> None:
    random = np.random.default_rng(0)
    hashes = random.choice(random.integers(-(2**63), 2**63 - 1, 40), 100)
    groups: dict[int, list[int]] = {}
    for row, value in enumerate(hashes.tolist()):
        groups.setdefault(value, []).append(row)
    rows, starts = _grouped(hashes)
    found = [rows[a:b].tolist() for a, b in pairwise(starts)]
    assert found == list(groups.values())


def test_a_batch_has_the_images_of_its_studies(dataset: PreparedDataset, by_image: Split) -> None:
    vocabulary = Vocabulary.most_frequent(dataset.words, dataset.tags, 50)
    split, rows = StudySplit(by_image, MOST), rows_by_hand(by_image)
    chosen, seeds = np.array([2, 0, 5, 1]), np.arange(4)
    weights = np.full(4, 0.25, np.float32)
    batch = TokenisedSplit(split, vocabulary, 4, 9).batch(chosen, seeds, weights)
    of_first = TokenisedSplit(by_image, vocabulary, 4, 9).batch(
        np.array([rows[number][0] for number in chosen]), seeds, weights
    )
    for name in ("reports", "stops", "tags", "weights", "seeds"):
        assert torch.equal(getattr(batch, name), getattr(of_first, name)), name
    assert batch.rows.tolist() == chosen.tolist()
    images = batch.images
    assert isinstance(images, StudyImages)
    pixels, taken = by_image.pixels(np.arange(len(by_image))), 0
    for study, number in enumerate(chosen):
        own = rows[number]
        assert images.present[study].tolist() == [place < len(own) for place in range(MOST)]
        for place, row in enumerate(own):
            assert images.places[taken] == MOST * study + place
            assert np.array_equal(images.images[taken], pixels[row])
            taken += 1
    assert len(images.images) == len(images.places) == taken
    given = as_images(split.pictures(chosen), MOST)
    assert isinstance(given, StudyImages)
    for name in ("images", "places", "present"):
        assert torch.equal(getattr(given, name), getattr(images, name)), name


def test_workers_share_the_studies_of_a_batch(dataset: PreparedDataset, by_image: Split) -> None:
    vocabulary = Vocabulary.most_frequent(dataset.words, dataset.tags, 50)
    split = TokenisedSplit(StudySplit(by_image, MOST), vocabulary, 4, 9)
    alone = split.batches(5, seed=1, epoch=2)
    shares = (split.batches(5, seed=1, epoch=2, rank=rank, world=2) for rank in range(2))
    for whole, *parts in zip(alone, *shares, strict=True):
        real = [part for part in parts if part.weights.sum() > 0]
        for name in ("rows", "seeds", "weights"):
            assert torch.equal(torch.cat([getattr(p, name) for p in real]), getattr(whole, name))
        for name in ("images", "present"):
            of_parts = torch.cat([getattr(part.images, name) for part in real])
            assert torch.equal(of_parts, getattr(whole.images, name))


def test_a_study_is_described_by_the_mean_of_its_images(by_image: Split) -> None:
    split, rows = StudySplit(by_image, MOST), rows_by_hand(by_image)
    means = BlockMeans(by_image)
    assert by_example(means, by_image) is means
    described = by_example(means, split)
    assert len(described) == len(rows)
    for number, vector in zip([4, 1], described.descriptors(np.array([4, 1])), strict=True):
        own = [means.descriptors(np.array([row]))[0] for row in rows[number]]
        assert vector == pytest.approx(sum(own) / len(own))


def test_the_share_cut_off_is_that_of_the_studies(
    dataset: PreparedDataset, by_image: Split
) -> None:
    vocabulary = Vocabulary.most_frequent(dataset.words, dataset.tags, 50)
    split = TokenisedSplit(StudySplit(by_image, MOST), vocabulary, 2, 3)
    words = cut = 0
    for own in rows_by_hand(by_image):
        for number, sentence in enumerate(by_image.sentences[own[0]]):
            count = len(sentence.split())
            words += count
            cut += count if number >= 2 else max(0, count - 3)
    assert 0 < cut < words
    assert split.cut_share() == pytest.approx(cut / words)
