"""Generated sentences with their attention, to be drawn or measured."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class AttendedSentence:
    """A generated sentence and its attention.

    Attributes:
        text: The sentence's words.
        alpha: Visual attention [h, w] over the regions, summing to 1; None for a system that
            does not attend to regions.
        tags: The tags behind the semantic features, each with its attention beta, summing to 1;
            empty for a system that does not attend to tags.
    """

    text: str
    alpha: np.ndarray | None
    tags: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class AttendedStudy:
    """An image, its generated report with each sentence's attention, and the ground truth.

    Attributes:
        name: The image's name.
        image: The image as the model saw it, uint8 [H, W].
        sentences: The generated report's sentences, in order.
        tags: Predicted tags with their probabilities, the likeliest first.
        truth: The sentences of the report written by a person; None if it is not known.
    """

    name: str
    image: np.ndarray
    sentences: Sequence[AttendedSentence]
    tags: Sequence[tuple[str, float]]
    truth: Sequence[str] | None
