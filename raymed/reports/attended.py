"""Generated sentences with their attention, to be drawn or measured."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class AttendedSentence:
    """A generated sentence and its attention.

    Attributes:
        text: The sentence's words.
        alpha: Visual attention [I, h, w] over the regions of the study's I images, summing to 1;
            None for a system that does not attend to regions.
        tags: The tags behind the semantic features, each with its attention beta, summing to 1;
            empty for a system that does not attend to tags.
    """

    text: str
    alpha: np.ndarray | None
    tags: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class AttendedStudy:
    """A study's images, the report generated from them with its attention, and the ground truth.

    Attributes:
        name: The images' names.
        images: The I images as the model saw them, uint8 [I, H, W].
        sentences: The generated report's sentences, in order.
        tags: Predicted tags with their probabilities, the likeliest first.
        truth: The sentences of the report written by a person; None if it is not known.
    """

    name: str
    images: np.ndarray
    sentences: Sequence[AttendedSentence]
    tags: Sequence[tuple[str, float]]
    truth: Sequence[str] | None
