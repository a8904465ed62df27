"""What every system is: images in, tags and words out, behind one interface.

A system of the paper's tables is one file of `raymed.model.systems`. Training calls it with
images and reports and gets `Outputs`; generation calls `read` and has the system's `Decoder` write
from what `read` gave. All systems share the encoder and the tag classifier, so that their
comparison is one of what follows them.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from raymed.model.encoder import Encoder, Images, regions, widths
from raymed.model.passages import Passages
from raymed.model.precision import precision_context
from raymed.model.tags import TagClassifier
from raymed.sections import ModelConfig
from raymed.tokens import PAD, START, UNKNOWN

State = tuple[Tensor, ...]
"""A writer's memory between two words, each [K, ...]."""
Context = tuple[Tensor, ...]
"""What K passages are written from, each [K, ...]."""


class EncodedImages(NamedTuple):
    """What the encoder and the tag classifier make of B images.

    Attributes:
        v: visual features [B, N, D].
        feature: the overall image feature [B, F]: the encoder's last hidden layer, 4,096 wide in
            VGG-19.
        tag_logits: [B, L].
    """

    v: Tensor
    feature: Tensor
    tag_logits: Tensor


@dataclass(frozen=True)
class Reading:
    """What a system says of B images before any word is written.

    Attributes:
        tag_logits: [B, L], at least float32, as all that is decided by.
        context: what each of a report's P passages is written from, each [B, P, ...]; a passage is
            a sentence where sentences are planned, else (P = 1) the whole report; empty for a
            system that writes nothing.
        stop_logits: [B, S, 2], at least float32; class 1 is STOP. None where the words themselves
            end the report.
        tag_ids: [B, M], the tags behind the semantic features, best first.
        alpha: [B, S, N], visual attention of each planned sentence.
        beta: [B, S, M], semantic attention of each planned sentence.
    """

    tag_logits: Tensor
    context: Context = ()
    stop_logits: Tensor | None = None
    tag_ids: Tensor | None = None
    alpha: Tensor | None = None
    beta: Tensor | None = None


class NextWords(NamedTuple):
    """The next words of a training pass, X in all.

    Attributes:
        logits: [X, V].
        targets: word ids [X].
        images: [X], the image each belongs to.
    """

    logits: Tensor
    targets: Tensor
    images: Tensor


@dataclass(frozen=True)
class Outputs:
    """A training pass over B images; what a system has not is None.

    Attributes:
        tag_logits: [B, L].
        stop_logits: [B, S, 2], over as many sentences as the longest report of the batch has.
        words: the logits of every real next word.
        attention_penalty: [B], the attention regularisation of the system's paper.
    """

    tag_logits: Tensor
    stop_logits: Tensor | None = None
    words: NextWords | None = None
    attention_penalty: Tensor | None = None


class DecoderOutputs(NamedTuple):
    """A teacher-forced pass over K passages of T next words.

    Attributes:
        logits: [X, V]: a row for each next word that is not PAD, in row-major order.
        alpha: [K, T, N], visual attention of each word, where the writer has it.
        beta: [K, T, M], semantic attention of each word, where the writer has it.
        beta_read: [K, T, M], the same for the word that was read, where the writer attends twice.
    """

    logits: Tensor
    alpha: Tensor | None = None
    beta: Tensor | None = None
    beta_read: Tensor | None = None


class Decoder(nn.Module, ABC):
    """Writes a passage word by word. A passage begins after START and ends with END."""

    forbidden_ids: ClassVar[tuple[int, ...]] = (PAD, START, UNKNOWN)
    """Ids that are no words of a passage."""

    @abstractmethod
    def forward(self, context: Context, passages: Passages) -> DecoderOutputs:
        """Teacher-forced pass over K passages."""

    @abstractmethod
    def initial_state(self, context: Context) -> State:
        """The state before START is read."""

    @abstractmethod
    def step(self, words: Tensor, state: State, context: Context) -> tuple[Tensor, State]:
        """Read one word per passage, ids [K] -> (logits of the next word [K, V], state)."""


class System(nn.Module, ABC):
    """A system: encoder, tag classifier, and what a subclass writes reports with.

    Args:
        config: the model section of the configuration.
        tags: L, the size of the tag vocabulary.
        words: V, the number of word ids, special ones included.
        encoder: of the kind that the configuration names; None: the system takes features only,
            those of a frozen encoder that lies elsewhere.
    """

    precision: torch.dtype = torch.float32
    """What it computes in, training, validation and prediction alike; weights are float32."""

    def __init__(self, config: ModelConfig, tags: int, words: int, encoder: Encoder | None) -> None:  # noqa: ARG002
        super().__init__()
        self.writer: Decoder | None = None
        self.visual_width, feature_width = widths(config.encoder)
        self.encoder = encoder
        if encoder is not None:
            encoder.requires_grad_(config.train_encoder)
        self.tag_classifier = TagClassifier(feature_width, tags, config.dropout)

    def encode(self, images: Images, seeds: Tensor | None) -> EncodedImages:
        """Images, or their features -> what is seen; ``seeds`` [B] draw the dropout masks."""
        if isinstance(images, Tensor):
            assert self.encoder is not None
            feature_map, hidden = self.encoder(images, seeds)
        else:
            dtype = self.tag_classifier.output.weight.dtype
            feature_map, hidden = (each.to(dtype) for each in images)
        tag_logits, feature = self.tag_classifier(hidden, seeds)
        return EncodedImages(regions(feature_map), feature, tag_logits)

    def move_to(self, device: torch.device, precision: torch.dtype) -> Self:
        """Move to a device, to compute there in that precision."""
        self.precision = precision
        if self.encoder is not None:
            self.encoder.move_to(device, precision)
        return self.to(device)

    def precision_context(self) -> AbstractContextManager[None]:
        """In which every pass is made: the model's one precision, on the device where it is."""
        return precision_context(self.precision, self.tag_classifier.output.weight.device)

    def passages(self, reports: Tensor) -> Passages:
        """What the writer is taught by reports, on the host: a passage for each sentence.

        Args:
            reports: word ids [B, S, T + 2]: START, words, END, PAD; all PAD past the last sentence.
        """
        real = reports[:, :, 0] == START
        images, _ = real.nonzero(as_tuple=True)
        return Passages.of(reports[real], real.flatten().nonzero().squeeze(1), images, real)

    @abstractmethod
    def forward(self, images: Images, passages: Passages, seeds: Tensor | None = None) -> Outputs:
        """A training pass over images and their reports.

        Args:
            images: uint8 [B, H, W], or their features.
            passages: what `passages` made of the reports, on the images' device.
            seeds: int64 [B], drawing the dropout masks; none: no dropout.
        """

    @abstractmethod
    def read(self, images: Images, sentences: int) -> Reading:
        """Images, or their features -> tags, and what reports of so many sentences come from."""

    def add_attention(self, reading: Reading, passages: Passages) -> Reading:  # noqa: ARG002
        """The reading with the attention of each sentence of the reports that were written.

        Args:
            reading: of B images.
            passages: of what was written, as in `forward`.
        """
        return reading


def init_glorot(*parts: nn.Module) -> None:
    """Give the linear maps of these parts Glorot's scale.

    Image and words meet in the word LSTM. With torch's default the image arrives there, after
    three matrices, at a tenth of a word embedding's size, and reports hardly depend on it for many
    epochs.
    """
    for part in parts:
        for layer in part.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
