"""A split by study: an example is a report with the images of its study, not a single image.

The rows of a prepared dataset are images. Those of one study that share a report become one
example; a study with several reports makes an example of each.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Protocol, TypeVar

import numpy as np
import torch

from raymed.data.codes import Categories, ImageCodes
from raymed.data.dataset import PreparedDataset, Split
from raymed.data.mapped import Computed
from raymed.image_tensors import Images, SingleImages, StudyImages
from raymed.progress import track

T = TypeVar("T")


class StudySplit:
    """A split by study: the sequences of a `Split`, with an entry per study.

    Studies are in the order of their first images, and a study's images in the dataset's order.
    Takes 16 bytes of memory per image.

    Args:
        by_image: The split.
        most: I, how many images are read of a study: its first ones.
    """

    def __init__(self, by_image: Split, most: int) -> None:
        self.by_image = by_image
        self.most = most
        self._rows, self._starts = _grouped(_hashes(by_image))
        self.image_ids = self._of_images(by_image.image_ids).map(",".join)
        """The ids of each study's images, separated by commas."""
        self.studies = self._of_first(by_image.studies)
        self.sentences = self._of_first(by_image.sentences)
        self.references = self._of_first(by_image.references)
        self.tags = self._of_images(by_image.tags).map(_union)
        """The tags of each study's images, without repetitions."""
        self.finding_names = self._of_images(by_image.finding_names).map(_union)
        self.codes = StudyCodes(self)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def rows_of(self, study: int) -> np.ndarray:
        """The rows of the images that are read of a study, int64 [n]."""
        start, stop = self._starts[study], self._starts[study + 1]
        return self._rows[start : min(stop, start + self.most)]

    def image_rows(self, studies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of the images that are read of some studies.

        Args:
            studies: The studies' numbers [B].

        Returns:
            int64 [K], study by study; and how many each has, int64 [B].
        """
        rows = [self.rows_of(study) for study in studies.tolist()]
        return np.concatenate(rows), np.array([len(each) for each in rows])

    def numbers(self) -> dict[str, int]:
        """The number of each study, by the ids of its images."""
        images = enumerate(self._of_images(self.by_image.image_ids))
        return {name: number for number, names in images for name in names}

    def pictures(self, studies: np.ndarray) -> list[np.ndarray]:
        """The pixels of the images of each study, uint8 [n, size, size]."""
        rows, counts = self.image_rows(studies)
        return np.split(self.by_image.pixels(rows), np.cumsum(counts)[:-1])

    def unread(self) -> tuple[int, int]:
        """How many studies have more images than are read, and how many images these are."""
        beyond = np.maximum(np.diff(self._starts) - self.most, 0)
        return int((beyond > 0).sum()), int(beyond.sum())

    def has_several(self) -> bool:
        """Whether any study has more than one image."""
        return len(self) < len(self.by_image)

    def _of_first(self, column: Sequence[T]) -> Computed[T]:
        """The entry of each study's first image."""
        return Computed(len(self), lambda study: column[int(self._rows[self._starts[study]])])

    def _of_images(self, column: Sequence[T]) -> Computed[list[T]]:
        """The entries of each study's images."""
        return Computed(
            len(self), lambda study: [column[row] for row in self.rows_of(study).tolist()]
        )


class StudyCodes:
    """The reports and tags of studies as integer codes; see `raymed.data.codes.CodedRows`."""

    def __init__(self, split: StudySplit) -> None:
        self._split = split
        self._codes = split.by_image.codes
        self.categories: Categories = self._codes.categories

    def __getitem__(self, study: int) -> ImageCodes:
        codes = [self._codes[row] for row in self._split.rows_of(study).tolist()]
        tags = _union([each.tags.tolist() for each in codes])
        return codes[0]._replace(tags=np.array(tags, np.int32))

    def share_beyond(self, max_sentences: int, max_words: int) -> float:
        """Return the share of words (0 to 1) that the limits on reports and sentences cut off."""
        words = kept = 0
        for study in track(range(len(self._split)), "measuring reports", len(self._split)):
            lengths = self._codes[int(self._split.rows_of(study)[0])].lengths
            words += int(lengths.sum())
            kept += int(np.minimum(lengths[:max_sentences], max_words).sum())
        return (words - kept) / max(1, words)


Examples = Split | StudySplit
"""A split's examples: its images, or its studies."""


def examples(split: Split, images_per_study: int) -> Examples:
    """A split's examples: its images if one is read of each study, or else its studies."""
    return split if images_per_study == 1 else StudySplit(split, images_per_study)


def open_examples(dataset: PreparedDataset, split_name: str, images_per_study: int) -> Examples:
    """Open the examples of the split ``train``, ``val`` or ``test``.

    Raises:
        UsageError: As for `PreparedDataset.split`.
    """
    return examples(dataset.split(split_name), images_per_study)


def load_images(
    split: Examples, rows: np.ndarray, load: Callable[[np.ndarray], SingleImages]
) -> Images:
    """The images of examples, as a system reads them.

    Args:
        split: The examples.
        rows: Their numbers [B].
        load: Returns the pixels or features of images, given by their rows in the dataset's split.
    """
    if not isinstance(split, StudySplit):
        return load(rows)
    of_images, counts = split.image_rows(rows)
    return StudyImages.of(load(of_images), torch.from_numpy(counts), split.most)


def as_images(pictures: Sequence[np.ndarray], images_per_study: int) -> Images:
    """The images of examples given by their pixels, uint8 [n, size, size] each."""
    pixels = torch.from_numpy(np.concatenate(pictures))
    if images_per_study == 1:
        return pixels
    counts = torch.tensor([len(each) for each in pictures])
    return StudyImages.of(pixels, counts, images_per_study)


class Described(Protocol):
    """Images, each described by a vector; as in `raymed.metrics.baselines`."""

    def __len__(self) -> int: ...
    def descriptors(self, rows: np.ndarray) -> np.ndarray:
        """float64 [n, K] of rows [n]."""


class MeanDescriptors:
    """Studies, each described by the mean of its images' vectors."""

    def __init__(self, images: Described, split: StudySplit) -> None:
        self._images = images
        self._split = split

    def __len__(self) -> int:
        return len(self._split)

    def descriptors(self, rows: np.ndarray) -> np.ndarray:
        """float64 [n, K] of rows [n]."""
        of_images, counts = self._split.image_rows(rows)
        starts = np.cumsum(counts) - counts
        sums = np.add.reduceat(self._images.descriptors(of_images), starts, axis=0)
        means: np.ndarray = sums / counts[:, None]
        return means


def by_example(images: Described, split: Examples) -> Described:
    """The examples of a split, described by vectors of its images."""
    return MeanDescriptors(images, split) if isinstance(split, StudySplit) else images


def _hashes(split: Split) -> np.ndarray:
    """A number for each image, equal for the images of one study with one report; int64."""

    def each() -> Iterator[int]:
        rows = track(split.studies, "grouping images by study", len(split))
        for row, study in enumerate(rows):
            codes = split.codes[row]
            yield hash((study, codes.words.tobytes(), codes.lengths.tobytes()))

    return np.fromiter(each(), np.int64, len(split))


def _grouped(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Group rows by their hashes, groups in the order of their first rows.

    Returns:
        The rows, group by group, int64 [rows]; and where each group starts and the last ends,
        int64 [groups + 1].
    """
    _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    number = np.empty(len(first), np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    group = number[group]
    counts = np.bincount(group, minlength=len(first))
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return np.argsort(group, kind="stable"), starts


def _union(lists: list[list[T]]) -> list[T]:
    return list(dict.fromkeys(chain.from_iterable(lists)))
