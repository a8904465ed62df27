"""Batches of one split, in an order that depends on seed and epoch alone.

Every worker computes the same order and takes its share of each batch, so any batch can be
reached again after a restart and the batches are the same for any number of workers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymed.data.codes import Numbers
from raymed.data.dataset import Split
from raymed.data.features import SplitFeatures
from raymed.data.vocabulary import Vocabulary
from raymed.tokens import END, PAD, START, UNKNOWN

IGNORED = -1

Images = Tensor | tuple[Tensor, Tensor]
"""B images, uint8 greyscale [B, H, W]; or their features, float16 [B, D, h, w] and [B, F]."""


@dataclass(frozen=True)
class Batch:
    """A worker's share of one batch, B images.

    Attributes:
        images: pixels, or the features of a frozen encoder.
        reports: word ids [B, S, T + 2] for sentences of up to T words: START, words, END, then PAD;
            no END where a sentence was cut; all PAD past a report's last sentence. They stay on the
            host, where a system makes its passages of them.
        stops: [B, S]: 1 at a report's last sentence, 0 before it, -1 past it.
        tags: float [B, L], 1 where the image has the tag.
        weights: float [B]: 1 / images of the whole batch, so that they sum to 1 over all shares;
            0 for an image that only fills an empty share.
        seeds: int64 [B], one per image and step, for dropout.
    """

    images: Images
    reports: Tensor
    stops: Tensor
    tags: Tensor
    weights: Tensor
    seeds: Tensor

    def to(self, device: torch.device) -> "Batch":
        """On a device, but for the reports."""
        moved: dict[str, Any] = {
            name: on_device(value, device)
            for name, value in vars(self).items()
            if name != "reports"
        }
        return replace(self, **moved)

    def pin_memory(self) -> "Batch":
        """In memory that a GPU copies from by itself."""
        pinned: dict[str, Any] = {
            name: value.pin_memory()
            if isinstance(value, Tensor)
            else tuple(each.pin_memory() for each in value)
            for name, value in vars(self).items()
            if name != "reports"
        }
        return replace(self, **pinned)


def on_device(images: Images, device: torch.device) -> Images:
    """Pixels, or features, where the model is."""
    if isinstance(images, Tensor):
        return images.to(device, non_blocking=True)
    feature_map, hidden = images
    return feature_map.to(device, non_blocking=True), hidden.to(device, non_blocking=True)


class TokenisedSplit:
    """A split with its reports as word ids, cut to what the model learns from.

    Args:
        split: of a prepared dataset.
        vocabulary: words and tags.
        max_sentences: later sentences are left out; the report then has no stop among the rest.
        max_words: later words of a sentence are left out, and its END with them.
        features: of its images, which batches then hold in place of their pixels.
    """

    def __init__(
        self,
        split: Split,
        vocabulary: Vocabulary,
        max_sentences: int,
        max_words: int,
        features: SplitFeatures | None = None,
    ) -> None:
        self.split = split
        self.features = features
        self.tag_count = len(vocabulary.tags)
        self._max_sentences, self._max_words = max_sentences, max_words
        words, tags = split.numbers.lists
        self._word_ids = np.array([vocabulary.word_ids.get(word, UNKNOWN) for word in words])
        self._tag_ids = np.array([vocabulary.tag_ids.get(tag, IGNORED) for tag in tags])
        self.tag_ids = split.tags.map(
            lambda tags: [vocabulary.tag_ids[tag] for tag in tags if tag in vocabulary.tag_ids]
        )

    def __len__(self) -> int:
        return len(self.split)

    def cut_share(self) -> float:
        """Share of all words (0 to 1) that is left out; nothing but lengths is read for it."""
        return self.split.numbers.share_beyond(self._max_sentences, self._max_words)

    def images(self, rows: np.ndarray) -> Images:
        """The pixels of ``rows`` [B], or their features where those are known."""
        if self.features is None:
            return torch.from_numpy(self.split.pixels(rows))
        feature_map, hidden = self.features.rows(rows)
        return torch.from_numpy(feature_map), torch.from_numpy(hidden)

    def batch(self, rows: np.ndarray, seeds: np.ndarray, weights: np.ndarray) -> Batch:
        """The images and reports of ``rows`` [B], padded to the longest of them."""
        numbers = [self.split.numbers[row] for row in rows.tolist()]
        ids, stops = self._padded(numbers)
        tag_ids = self._tag_ids[np.concatenate([one.tags for one in numbers])]
        image = np.repeat(np.arange(len(rows)), [len(one.tags) for one in numbers])
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
        )

    def _padded(self, images: list[Numbers]) -> tuple[np.ndarray, np.ndarray]:
        """The ``reports`` and ``stops`` of a batch."""
        reports = [(one.words, one.lengths) for one in images]
        planned = np.array([len(lengths) for _, lengths in reports])
        counts = np.minimum(planned, self._max_sentences)
        for i in np.flatnonzero(counts < planned):
            words, own = reports[i]
            reports[i] = words[: own[: counts[i]].sum()], own[: counts[i]]
        stops = np.full((len(images), counts.max()), IGNORED, dtype=np.int64)
        present = np.arange(counts.max()) < counts[:, None]  # [B, S]
        stops[present] = 0
        whole = np.flatnonzero((counts == planned) & (counts > 0))
        stops[whole, counts[whole] - 1] = 1

        lengths = np.full(stops.shape, -1)  # [B, S]: words of each sentence, -1 where there is none
        lengths[present] = np.concatenate([own for _, own in reports])
        words = np.full((*stops.shape, lengths.max()), PAD, dtype=np.int64)
        words[np.arange(words.shape[2]) < lengths[:, :, None]] = self._word_ids[
            np.concatenate([own for own, _ in reports])
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
        """One epoch: this worker's share of each batch of ``batch_size`` images.

        The ``first`` so many batches are left out: of an epoch that is taken up again.

        A batch is cut into ``world`` shares whose sizes differ by one at most. A worker whose
        share is empty gets one image of weight 0, so that it takes part in every step.
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


def steps_per_epoch(images: int, batch_size: int) -> int:
    """How many optimiser steps one epoch has: the last batch may be smaller."""
    return -(-images // batch_size)
