"""Batches of a split, in an order that depends only on seed and epoch.

Every worker computes the same order and takes its share of each batch. So training can resume at
any batch, and the batches are the same for any number of workers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymed.data.codes import ImageCodes
from raymed.data.features import SplitFeatures
from raymed.data.studies import Examples, StudySplit, load_images
from raymed.data.vocabulary import Vocabulary
from raymed.image_tensors import Images, SingleImages, map_tensors
from raymed.tokens import END, PAD, START, UNKNOWN

IGNORED = -1
ON_HOST = ("reports", "rows")
"""What of a batch stays in the host's memory."""


@dataclass(frozen=True)
class Batch:
    """A worker's share of a batch: B examples, which are images or, of several images, studies.

    Attributes:
        images: Pixels, or the features of what is frozen of the encoder; of studies, those of all
            their images.
        reports: Word ids [B, S, T + 2] for sentences of up to T words: START, words, END, then PAD.
            There is no END in a truncated sentence, and only PAD after a report's last sentence.
            Stays on the host, where a system converts it to passages.
        stops: [B, S]: 1 at a report's last sentence, 0 before it, -1 after it.
        tags: float [B, L]: 1 where the image has the tag.
        weights: float [B]: 1 / (size of the whole batch), so that the sum over all shares is 1; 0
            for an image that only fills an empty share.
        seeds: int64 [B]: random seeds, different for each image and step.
        rows: int64 [B]: the images' rows in the split. Stays on the host.
    """

    images: Images
    reports: Tensor
    stops: Tensor
    tags: Tensor
    weights: Tensor
    seeds: Tensor
    rows: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Copy everything but what stays on the host to a device."""
        moved: dict[str, Any] = {
            name: on_device(value, device)
            for name, value in vars(self).items()
            if name not in ON_HOST
        }
        return replace(self, **moved)

    def pin_memory(self) -> "Batch":
        """Pin everything but what stays on the host, for asynchronous copies to a GPU."""
        pinned: dict[str, Any] = {
            name: map_tensors(value, Tensor.pin_memory)
            for name, value in vars(self).items()
            if name not in ON_HOST
        }
        return replace(self, **pinned)


def on_device(images: Images, device: torch.device) -> Images:
    """Copy images to a device."""
    return map_tensors(images, lambda part: part.to(device, non_blocking=True))


class TokenisedSplit:
    """A split with its reports as word ids, truncated to what the model learns from.

    Args:
        split: The examples of a split of a prepared dataset.
        vocabulary: Words and tags.
        max_sentences: Further sentences are dropped; such a report has no stop.
        max_words: Further words of a sentence are dropped, and so is its END.
        features: Features of all images of the split, which replace the pixels in the batches.
    """

    def __init__(
        self,
        split: Examples,
        vocabulary: Vocabulary,
        max_sentences: int,
        max_words: int,
        features: SplitFeatures | None = None,
    ) -> None:
        self.split = split
        self.vocabulary = vocabulary
        self.features = features
        self._by_image = split.by_image if isinstance(split, StudySplit) else split
        self.tag_count = len(vocabulary.tags)
        self._max_sentences, self._max_words = max_sentences, max_words
        words, tags = split.codes.categories
        self._word_ids = np.array([vocabulary.word_ids.get(word, UNKNOWN) for word in words])
        self._tag_ids = np.array([vocabulary.tag_ids.get(tag, IGNORED) for tag in tags])
        self.tag_ids = split.tags.map(
            lambda tags: [vocabulary.tag_ids[tag] for tag in tags if tag in vocabulary.tag_ids]
        )

    def __len__(self) -> int:
        return len(self.split)

    def cut_share(self) -> float:
        """Return the share of words (0 to 1) that is dropped; reads only sentence lengths."""
        return self.split.codes.share_beyond(self._max_sentences, self._max_words)

    def images(self, rows: np.ndarray) -> Images:
        """Return the features of the images of ``rows`` [B] if there are any, else the pixels."""
        return load_images(self.split, rows, self._load)

    def _load(self, rows: np.ndarray) -> SingleImages:
        """The features or pixels of images, given by their rows in the dataset's split."""
        if self.features is None:
            return torch.from_numpy(self._by_image.pixels(rows))
        return tuple(torch.from_numpy(part) for part in self.features.rows(rows))

    def batch(self, rows: np.ndarray, seeds: np.ndarray, weights: np.ndarray) -> Batch:
        """Return the batch of ``rows`` [B], padded to its longest report and sentence."""
        codes = [self.split.codes[row] for row in rows.tolist()]
        ids, stops = self._padded(codes)
        tag_ids = self._tag_ids[np.concatenate([each.tags for each in codes])]
        image = np.repeat(np.arange(len(rows)), [len(each.tags) for each in codes])
        known = tag_ids != IGNORED
        tags = np.zeros((len(rows), self.tag_count), dtype=np.float32)
        tags[image[known], tag_ids[known]] = 1
        return Batch(
            images=self.images(rows),
            reports=torch.from_numpy(ids),
            stops=torch.from_numpy(stops),
            tags=torch.from_numpy(tags),
            weights=torch.from_numpy(weights),
            seeds=torch.from_numpy(seeds),
            rows=torch.from_numpy(rows),
        )

    def _padded(self, codes: list[ImageCodes]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ``reports`` and ``stops`` of a batch."""
        reports = [(each.words, each.lengths) for each in codes]
        full = np.array([len(lengths) for _, lengths in reports])
        counts = np.minimum(full, self._max_sentences)
        for i in np.flatnonzero(counts < full):
            words, lengths = reports[i]
            reports[i] = words[: lengths[: counts[i]].sum()], lengths[: counts[i]]
        stops = np.full((len(codes), counts.max()), IGNORED, dtype=np.int64)
        present = np.arange(counts.max()) < counts[:, None]  # [B, S]
        stops[present] = 0
        untruncated = np.flatnonzero((counts == full) & (counts > 0))
        stops[untruncated, counts[untruncated] - 1] = 1

        lengths = np.full(stops.shape, -1)  # [B, S]: words per sentence, -1 past the last
        lengths[present] = np.concatenate([each for _, each in reports])
        words = np.full((*stops.shape, lengths.max()), PAD, dtype=np.int64)
        words[np.arange(words.shape[2]) < lengths[:, :, None]] = self._word_ids[
            np.concatenate([each for each, _ in reports])
        ]
        cut = np.minimum(lengths, self._max_words)
        has_end = present & (lengths <= self._max_words)
        ids = np.full((*stops.shape, (1 + cut + has_end).max()), PAD, dtype=np.int64)
        ids[present, 0] = START
        ids[:, :, 1 : 1 + cut.max()] = words[:, :, : cut.max()]
        image, sentence = np.nonzero(has_end)
        ids[image, sentence, 1 + cut[has_end]] = END
        return ids, stops

    def batches(
        self,
        batch_size: int,
        seed: int,
        epoch: int,
        rank: int = 0,
        world: int = 1,
        first: int = 0,
    ) -> Iterator[Batch]:
        """Yield this worker's share of each batch of an epoch.

        A batch is divided into ``world`` shares whose sizes differ by at most one. A worker with
        an empty share gets one image of weight 0, so that it takes part in every step.

        Args:
            batch_size: Images per batch, over all workers.
            seed: Seed of the order and of dropout.
            epoch: Number of the epoch.
            rank: Rank of this worker.
            world: Number of workers.
            first: Number of batches to skip, to resume within an epoch.
        """
        random = np.random.default_rng([seed, epoch])
        order = random.permutation(len(self))
        seeds = random.integers(2**62, size=len(self))
        for start in range(first * batch_size, len(order), batch_size):
            stop = min(start + batch_size, len(order))
            share = np.array_split(np.arange(start, stop), world)[rank]
            weights = np.full(len(share), 1 / (stop - start), dtype=np.float32)
            if len(share) == 0:
                share, weights = np.array([start]), np.zeros(1, dtype=np.float32)
            yield self.batch(order[share], seeds[share], weights)


def steps_per_epoch(image_count: int, batch_size: int) -> int:
    """Return the number of optimiser steps per epoch; the last batch may be smaller."""
    return -(-image_count // batch_size)
