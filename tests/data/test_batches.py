import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from raymed.data.batches import Batch, TokenisedSplit, steps_per_epoch
from raymed.data.dataset import PreparedDataset, Split
from raymed.data.examples import Example
from raymed.data.vocabulary import Vocabulary
from raymed.tokens import END, PAD, START, UNKNOWN
from tests.support.prepared import prepare_examples


@pytest.fixture(scope="module")
def dataset(phantom: Path) -> PreparedDataset:
    return PreparedDataset.open(phantom)


@pytest.fixture(scope="module")
def train(dataset: PreparedDataset) -> Split:
    return dataset.split("train")


def tokenised(
    dataset: PreparedDataset, train: Split, words: int = 1000, sentences: int = 12, length: int = 30
) -> TokenisedSplit:
    vocabulary = Vocabulary.most_frequent(dataset.words, dataset.tags, words)
    return TokenisedSplit(train, vocabulary, sentences, length)


def batch_of(split: TokenisedSplit, rows: list[int]) -> Batch:
    return split.batch(
        np.array(rows), np.arange(len(rows)), np.full(len(rows), 1 / len(rows), np.float32)
    )


def test_a_batch_holds_what_the_data_set_says(dataset: PreparedDataset, train: Split) -> None:
    rows = [5, 0, 17]
    split = tokenised(dataset, train)
    batch = batch_of(split, rows)
    words = Vocabulary.most_frequent(dataset.words, dataset.tags, 1000)
    assert batch.images.dtype == torch.uint8
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(batch.images[i], train.pixels(np.array([row]))[0])
        found = {dataset.tags[tag] for tag in batch.tags[i].nonzero().flatten().tolist()}
        assert found == set(train.tags[row])
        sentences = [ids for ids in batch.reports[i].tolist() if ids[0] == START]
        assert [words.decode(ids) for ids in sentences] == train.sentences[row]
        for ids in sentences:
            length = ids.index(END) + 1
            assert UNKNOWN not in ids
            assert PAD not in ids[:length]
            assert set(ids[length:]) <= {PAD}
        count = len(sentences)
        assert batch.stops[i, :count].tolist() == [0] * (count - 1) + [1]
        assert (batch.stops[i, count:] == -1).all()
        assert (batch.reports[i, count:] == PAD).all()
    longest = max(len(text.split()) for row in rows for text in train.sentences[row])
    most = max(len(train.sentences[row]) for row in rows)
    assert batch.reports.shape == (3, most, longest + 2)


def test_a_report_cut_in_its_sentences_has_no_stop(dataset: PreparedDataset, train: Split) -> None:
    lengths = [len(sentences) for sentences in train.sentences]
    cut = sorted(set(lengths))[-2]
    split = tokenised(dataset, train, sentences=cut)
    batch = batch_of(split, list(range(len(train))))
    assert batch.reports.shape[1] == cut
    for i, length in enumerate(lengths):
        labels = batch.stops[i].tolist()
        if length > cut:
            assert labels == [0] * cut
        else:
            assert labels == [0] * (length - 1) + [1] + [-1] * (cut - length)
    assert max(lengths) > cut


def test_a_sentence_cut_in_its_words_has_no_end(dataset: PreparedDataset, train: Split) -> None:
    cut = 7
    split = tokenised(dataset, train, length=cut)
    rows = list(range(len(train)))
    batch, whole = batch_of(split, rows), batch_of(tokenised(dataset, train), rows)
    assert batch.reports.shape[2] == cut + 2
    cuts = 0
    for row, sentences in enumerate(train.sentences):
        for s, text in enumerate(sentences):
            ids, uncut = (
                [i for i in one.reports[row, s].tolist() if i != PAD] for one in (batch, whole)
            )
            if len(text.split()) > cut:
                cuts += 1
                assert ids == uncut[: cut + 1]
                assert END not in ids
            else:
                assert ids == uncut
    assert cuts
    # Only the text that is learned from is cut; what is scored against never is.
    assert list(split.split.references) == [" ".join(sentences) for sentences in train.sentences]


def test_a_vocabulary_without_some_words_and_tags(dataset: PreparedDataset, train: Split) -> None:
    """As a checkpoint of another dataset has it: its order is another, and words are missing."""
    words, tags = list(dataset.words)[5:0:-1], ["not here", *dataset.tags[:1:-1]]
    vocabulary = Vocabulary(tuple(words), tuple(tags))
    split = TokenisedSplit(train, vocabulary, 12, 30)
    batch = batch_of(split, list(range(len(train))))
    assert UNKNOWN in batch.reports
    for row, sentences in enumerate(train.sentences):
        for s, text in enumerate(sentences):
            ids = [words.index(word) + 4 if word in words else UNKNOWN for word in text.split()]
            found = [i for i in batch.reports[row, s].tolist() if i != PAD]
            assert found == [START, *ids, END]
        known = sorted(tags.index(tag) for tag in train.tags[row] if tag in tags)
        assert batch.tags[row].nonzero().flatten().tolist() == known
        assert sorted(split.tag_ids[row]) == known


def test_words_outside_the_vocabulary_are_unknown(dataset: PreparedDataset, train: Split) -> None:
    split = tokenised(dataset, train, words=5)
    known = set(list(dataset.words)[:5])
    unknown = int((batch_of(split, list(range(len(train)))).reports == UNKNOWN).sum())
    words = [word for reference in train.references for word in reference.split()]
    assert unknown == sum(word not in known for word in words) > 0


@pytest.mark.parametrize("batch_size", [1, 2, 5, 7, 24, 100])
@pytest.mark.parametrize("world", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("images", [1, 2, 11, 24])
def test_shares_partition_every_batch(
    dataset: PreparedDataset, train: Split, batch_size: int, world: int, images: int
) -> None:
    split = First(dataset, train, images)
    whole = list(split.batches(batch_size, seed=3, epoch=2))
    assert len(whole) == steps_per_epoch(images, batch_size)
    shares = [list(split.batches(batch_size, 3, 2, rank, world)) for rank in range(world)]
    assert all(len(steps) == len(whole) for steps in shares)
    for step, batch in enumerate(whole):
        counted = [
            (seed, int(row))
            for share in (steps[step] for steps in shares)
            for seed, row, weight in zip(
                share.seeds.tolist(), share.images.tolist(), share.weights.tolist(), strict=True
            )
            if weight > 0
        ]
        assert counted == list(zip(batch.seeds.tolist(), batch.images.tolist(), strict=True))
        weights = torch.cat([steps[step].weights for steps in shares])
        assert float(weights.double().sum()) == pytest.approx(1, abs=1e-6)
        assert len(set(weights[weights > 0].tolist())) == 1
        sizes = [int((steps[step].weights > 0).sum()) for steps in shares]
        assert max(sizes) - min(sizes) <= 1
        # A worker whose share is empty still has an image to take the step with.
        assert all(len(steps[step].images) >= 1 for steps in shares)
    seen = sorted(row for batch in whole for row in batch.images.tolist())
    assert seen == list(range(images))


class First(TokenisedSplit):
    """The first images of a split, each with its row number in place of its pixels."""

    def __init__(self, dataset: PreparedDataset, train: Split, images: int) -> None:
        vocabulary = Vocabulary.most_frequent(dataset.words, dataset.tags, 1000)
        super().__init__(train, vocabulary, 12, 30)
        self.count = images

    def __len__(self) -> int:
        return self.count

    def batch(self, rows: np.ndarray, seeds: np.ndarray, weights: np.ndarray) -> Batch:
        whole = super().batch(rows, seeds, weights)
        return Batch(**{**vars(whole), "images": torch.from_numpy(rows)})


def order(split: First, batch_size: int, seed: int, epoch: int) -> list[tuple[int, int]]:
    return [
        pair
        for batch in split.batches(batch_size, seed, epoch)
        for pair in zip(batch.images.tolist(), batch.seeds.tolist(), strict=True)
    ]


def test_order_and_dropout_seeds_depend_on_seed_and_epoch_alone(
    dataset: PreparedDataset, train: Split
) -> None:
    split = First(dataset, train, 24)
    first = order(split, 5, seed=0, epoch=1)
    np.random.default_rng().random()
    torch.manual_seed(99)
    # Any epoch can be reached at once, at any batch size, by a split opened anew.
    assert order(First(dataset, train, 24), 7, seed=0, epoch=1) == first
    for seed, epoch in ((0, 2), (1, 1), (1, 0)):
        other = order(split, 5, seed, epoch)
        assert [row for row, _ in other] != [row for row, _ in first]
        assert not {s for _, s in other} & {s for _, s in first}
    assert len({s for _, s in first}) == 24


def test_steps_per_epoch() -> None:
    assert [steps_per_epoch(images, 4) for images in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]


def test_a_batch_moves_whole(dataset: PreparedDataset, train: Split) -> None:
    moved = batch_of(tokenised(dataset, train), [0, 1]).to(torch.device("meta"))
    # The reports stay on the host: whoever asked a GPU for their lengths would wait for it. So do
    # the rows, by which the host finds the references.
    where = {name: tensor.device.type for name, tensor in vars(moved).items()}
    assert [where.pop(name) for name in ("reports", "rows")] == ["cpu", "cpu"]
    assert set(where.values()) == {"meta"}


def test_a_split_holds_next_to_nothing_for_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By tracemalloc, and Arrow's own count; what is mapped is in neither."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    held = {}
    for count in (800, 2400):
        random = np.random.default_rng(0)
        words = np.array([f"word{chr(97 + number)}" for number in range(26)])
        prepare_examples(
            (
                Example(
                    f"i{number}",
                    f"s{number}",
                    np.full((8, 8), number % 256, np.uint8),
                    ". ".join(" ".join(random.choice(words, 8)) for _ in range(5)),
                    (f"tag {number % 7}", f"tag {number % 11}"),
                )
                for number in range(count)
            ),
            tmp_path / str(count),
            image_size=8,
        )
        opened = PreparedDataset.open(tmp_path / str(count))
        opened.split("train")
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        split = tokenised(opened, opened.split("train"))
        now, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        held[len(split)] = max(now, most) + pa.total_allocated_bytes() - before
    (few, at_few), (many, at_many) = held.items()
    assert (at_many - at_few) / (many - few) < 100
