"""The interface that every system of the paper's tables implements.

A system is one file of `raymed.model.systems`, whose class `Model` derives from `System` (or from
one of its two families, `raymed.model.hierarchical.Hierarchical` and
`raymed.model.single_decoder.SingleDecoder`) and implements

* `System.forward`, which training calls with images and passages, and which returns `Outputs`;
* `System.read`, which generation calls with images, and which returns a `Reading`;
* `System.writer`, a `Decoder` that generation runs on the contexts of that `Reading`, unless the
  system predicts tags only;
* `System.add_attention`, if its attention is known only once the report is generated.

All systems share the encoder and the tag classifier, so that a comparison of two systems is one of
what follows these. Shapes use the paper's letters: B images, N regions, M attended tags, L tags, S
sentences, T words, V word ids, K passages (see `raymed.model.passages`), H and E the hidden and
embedding widths.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from raymed.errors import UsageError
from raymed.image_tensors import Images, StudyImages
from raymed.model.attention import mean_region
from raymed.model.dropout import SeededDropout, uniform_bits
from raymed.model.encoder import Encoder, regions
from raymed.model.encoder_shapes import widths
from raymed.model.passages import Passages
from raymed.model.precision import precision_context
from raymed.model.side_by_side import SideBySide, seeds_of_images
from raymed.model.tags import TagClassifier
from raymed.model.tied import TiedLinear
from raymed.sections import ModelConfig
from raymed.tokens import PAD, START, UNKNOWN

State = tuple[Tensor, ...]
"""A decoder's state between two words: tensors [K, ...]."""
Context = tuple[Tensor, ...]
"""What K passages are decoded from: tensors [K, ...]."""


class EncodedImages(NamedTuple):
    """The output of the encoder and the tag classifier for B images, or B studies.

    The regions of a study's images are side by side: N is then their number over all I images.

    Attributes:
        v: Visual features [B, N, D], of unit root mean square over the training images.
        feature: The overall image feature [B, F]: the encoder's last hidden layer, 4,096 wide in
            VGG-19; likewise, but for dropout.
        tag_logits: [B, L].
        present: bool [B, N], which regions are of images that a study has; None: all. Those of
            missing images have v = 0 and must not be attended to.
    """

    v: Tensor
    feature: Tensor
    tag_logits: Tensor
    present: Tensor | None = None

    def mean_region(self) -> Tensor:
        """mean_n v_n over the regions that are present, [B, D]."""
        return mean_region(self.v, self.present)


@dataclass(frozen=True)
class Reading:
    """What a system makes of B images before any word is decoded.

    What the system lacks is None.

    Attributes:
        tag_logits: [B, L], at least float32, like all outputs that are decisions.
        context: The contexts of each report's P passages, tensors [B, P, ...]. A passage is a
            sentence where the system plans sentences, or else the whole report (P = 1). Empty for a
            system that writes no reports.
        stop_logits: [B, S, 2], at least float32; class 1 is STOP. None where the words themselves
            end the report.
        tag_ids: [B, M], the tags behind the semantic features, most probable first.
        alpha: [B, S, N], visual attention of each sentence.
        beta: [B, S, M], semantic attention of each sentence.
        present: bool [B, N], as in `EncodedImages`.
    """

    tag_logits: Tensor
    context: Context = ()
    stop_logits: Tensor | None = None
    tag_ids: Tensor | None = None
    alpha: Tensor | None = None
    beta: Tensor | None = None
    present: Tensor | None = None

    def alpha_of(self, number: int) -> Tensor | None:
        """The visual attention of one of the B, [S, N], over the regions that are present."""
        if self.alpha is None or self.present is None:
            return None if self.alpha is None else self.alpha[number]
        return self.alpha[number][:, self.present[number]]


class NextWords(NamedTuple):
    """The next words of a training pass, X in total.

    Attributes:
        logits: [X, V].
        targets: Word ids [X].
        images: [X], the image that each belongs to.
    """

    logits: Tensor
    targets: Tensor
    images: Tensor


@dataclass(frozen=True)
class Outputs:
    """The result of a training pass over B images. What the system lacks is None.

    Attributes:
        tag_logits: [B, L].
        stop_logits: [B, S, 2], S being the number of sentences of the batch's longest report.
        words: The logits of every real next word.
        attention_penalty: [B], the attention regularisation of the system's paper.
    """

    tag_logits: Tensor
    stop_logits: Tensor | None = None
    words: NextWords | None = None
    attention_penalty: Tensor | None = None


class DecoderOutputs(NamedTuple):
    """The result of a teacher-forced pass over K passages of T next words.

    Attributes:
        logits: [X, V]: a row for each next word that is not PAD, in row-major order.
        alpha: [K, T, N], visual attention at each word, if the decoder has any.
        beta: [K, T, M], semantic attention at each word, if the decoder has any.
        beta_read: [K, T, M], the same for the input word, if the decoder attends twice.
    """

    logits: Tensor
    alpha: Tensor | None = None
    beta: Tensor | None = None
    beta_read: Tensor | None = None


class Decoder(nn.Module, ABC):
    """Decodes passages word by word. A passage begins after START and ends with END."""

    forbidden_ids: ClassVar[tuple[int, ...]] = (PAD, START, UNKNOWN)
    """Word ids that generation never chooses."""
    output_layer: ClassVar[str] = "w_out"
    """The attribute that holds the output layer, a linear one."""
    embedding: nn.Embedding
    """Of the words that are read, [V, E]."""

    def __init__(self) -> None:
        super().__init__()
        # Off; `raymed.model.systems.build_system` sets the rates of the configuration.
        self.embedding_dropout = SeededDropout(0.0)
        self.output_dropout = SeededDropout(0.0)

    def embed(self, ids: Tensor, seeds: Tensor | None) -> Tensor:
        """Word ids [K, T] -> their embeddings [K, T, E], with dropout by ``seeds`` [K]."""
        embedded: Tensor = self.embedding_dropout(self.embedding(ids), seeds)
        return embedded

    def drop_outputs(self, outputs: Tensor, passages: Passages, seeds: Tensor | None) -> Tensor:
        """The input of the output layer [X, ...] with dropout by the passages' ``seeds`` [K].

        Each word has a seed of its own, from its passage's and its position in it.
        """
        if seeds is None or self.output_dropout.rate == 0:
            return outputs
        of_words = uniform_bits(seeds + 1, passages.ids.shape[1] - 1).flatten()
        dropped: Tensor = self.output_dropout(outputs, of_words.index_select(0, passages.positions))
        return dropped

    def tie_embeddings(self) -> None:
        """Make the output layer use the matrix of the embeddings, which is drawn anew.

        It gets a variance of 1 / E: with unit variance, that of the logits would be E.
        """
        own = getattr(self, self.output_layer)
        setattr(self, self.output_layer, TiedLinear(self.embedding, own.bias))
        nn.init.normal_(self.embedding.weight, std=self.embedding.embedding_dim**-0.5)

    @abstractmethod
    def forward(
        self, context: Context, passages: Passages, seeds: Tensor | None = None
    ) -> DecoderOutputs:
        """Teacher-forced pass over K passages, each from its context.

        Args:
            context: Tensors [K, ...].
            passages: The passages.
            seeds: int64 [K], from which the dropout masks are drawn; None for no dropout.
        """

    @abstractmethod
    def initial_state(self, context: Context) -> State:
        """The state of K passages before START is read."""

    @abstractmethod
    def step(self, words: Tensor, state: State, context: Context) -> tuple[Tensor, State]:
        """Read one word per passage, ids [K] -> (logits of the next word [K, V], state)."""


class System(nn.Module, ABC):
    """A system: the encoder, the tag classifier, and what a subclass generates reports with.

    Args:
        config: The model section of the configuration.
        tags: L, the size of the tag vocabulary.
        words: V, the number of word ids, special ones included.
        encoder: The encoder that the configuration names; without its convolutions, or None, for a
            system that receives only the features of these, or of the whole encoder.
    """

    writes_reports: ClassVar[bool] = True
    """Whether it writes reports; a system that predicts tags alone has no `writer`."""
    visual: ClassVar[bool] = False
    """Whether the system attends to regions."""
    reads_out_hidden: ClassVar[bool] = True
    """Whether the output layer's input has the width of hidden states, rather than of embeddings,
    by definition."""
    precision: torch.dtype = torch.float32
    """What it computes in, in training, validation and prediction alike; weights are float32."""
    visual_scale: Tensor
    """What visual features are divided by: a scalar."""
    feature_scale: Tensor
    """What the overall image feature is divided by: a scalar."""
    writer: Decoder | None
    """Decodes the reports; None in a system that predicts tags only. Checkpoints know its weights
    by this name."""

    def __init__(self, config: ModelConfig, tags: int, words: int, encoder: Encoder | None) -> None:  # noqa: ARG002
        super().__init__()
        self.writer = None
        # Set by `raymed.model.systems.build_system` for a system that reads studies.
        self.side_by_side: SideBySide | None = None
        self.visual_width, feature_width = widths(config.encoder)
        self.encoder = encoder
        if encoder is not None:
            encoder.requires_grad_(config.train_encoder != "none")
            if encoder.convolutions is not None:
                encoder.convolutions.requires_grad_(config.train_encoder == "all")
        self.tag_classifier = TagClassifier(feature_width, tags, config.dropout)
        # Part of every checkpoint; measured at the start of a run (`raymed.training.scales`).
        self.register_buffer("visual_scale", torch.ones(()))
        self.register_buffer("feature_scale", torch.ones(()))

    @classmethod
    def check(cls, config: ModelConfig) -> None:
        """Check that the system can have these settings.

        Raises:
            UsageError: It cannot; the message names the key.
        """
        if not config.tie_embeddings:
            return
        if not cls.writes_reports:
            raise UsageError(
                f"model.tie_embeddings: {config.system} writes no reports and has no word "
                "embeddings; set it to false"
            )
        hidden, size = config.hidden_size, config.embedding_size
        if cls.reads_out_hidden and hidden != size:
            raise UsageError(
                f"model.tie_embeddings: the output layer of {config.system} reads hidden states, "
                f"so model.hidden_size ({hidden}) and model.embedding_size ({size}) must be equal: "
                "set both to one value, or tie_embeddings to false"
            )

    def encode(self, images: Images, seeds: Tensor | None) -> EncodedImages:
        """Encode images or studies; ``seeds`` [B] determine the dropout masks."""
        feature_map, hidden = self.features(images, seeds)
        v, hidden = regions(feature_map) / self.visual_scale, hidden / self.feature_scale
        present = None
        if isinstance(images, StudyImages):
            assert self.side_by_side is not None
            v, hidden, present = self.side_by_side(v, hidden, images)
        tag_logits, feature = self.tag_classifier(hidden, seeds)
        return EncodedImages(v, feature, tag_logits, present)

    def features(self, images: Images, seeds: Tensor | None) -> tuple[Tensor, Tensor]:
        """The encoder's feature map [B, D, h, w] and last hidden layer [B, F], of its own scale.

        Of studies, those of their K images.
        """
        if isinstance(images, StudyImages):
            return self.features(images.images, seeds_of_images(seeds, images))
        if isinstance(images, Tensor):
            assert self.encoder is not None
            feature_map, hidden = self.encoder(images, seeds)
            return feature_map, hidden
        dtype = self.tag_classifier.output.weight.dtype
        feature_map, *rest = (each.to(dtype) for each in images)
        if rest:
            return feature_map, rest[0]
        assert self.encoder is not None
        return feature_map, self.encoder.overall(feature_map, seeds)

    @property
    def device(self) -> torch.device:
        """The device it computes on."""
        return self.tag_classifier.output.weight.device

    def move_to(self, device: torch.device, precision: torch.dtype) -> Self:
        """Move to a device, to compute there in ``precision``."""
        self.precision = precision
        if self.encoder is not None:
            self.encoder.move_to(device, precision)
        return self.to(device)

    def precision_context(self) -> AbstractContextManager[None]:
        """The context in which to run every pass: the model's precision, on its device."""
        return precision_context(self.precision, self.device)

    def passages(self, reports: Tensor) -> Passages:
        """The passages the decoder learns from, on the host: one for each sentence.

        Args:
            reports: Word ids [B, S, T + 2]: START, words, END, PAD; all PAD beyond the last
                sentence.
        """
        real = reports[:, :, 0] == START
        images, _ = real.nonzero(as_tuple=True)
        return Passages.of(reports[real], real.flatten().nonzero().squeeze(1), images, real)

    @abstractmethod
    def forward(self, images: Images, passages: Passages, seeds: Tensor | None = None) -> Outputs:
        """A training pass over images and their reports.

        Args:
            images: Of B images or studies, pixels or features.
            passages: The result of `passages` for their reports, on the images' device.
            seeds: int64 [B], from which the dropout masks are drawn; None for no dropout.
        """

    @abstractmethod
    def read(self, images: Images, sentences: int) -> Reading:
        """The tags of images, and the contexts of their reports.

        Args:
            images: Of B images or studies, pixels or features.
            sentences: S, how many sentences to plan, if the system plans sentences.
        """

    def add_attention(self, reading: Reading, passages: Passages) -> Reading:  # noqa: ARG002
        """The reading, with the attention at each sentence of the generated reports.

        Args:
            reading: The reading of B images.
            passages: The passages of their generated reports, as for `forward`.
        """
        return reading


def passage_seeds(seeds: Tensor | None, passages: Passages, contexts: int) -> Tensor | None:
    """A seed for each passage [K], from the images' ``seeds`` [B]; None stays None.

    Args:
        seeds: int64 [B].
        passages: K passages.
        contexts: P, the number of contexts per image, those of padding included. It does not
            affect the result.
    """
    if seeds is None:
        return None
    # The encoder's dropout uses the seeds themselves, the tag classifier's the next.
    of_contexts = uniform_bits(seeds + 2, contexts).flatten()
    return of_contexts.index_select(0, passages.contexts)


def init_glorot(*parts: nn.Module) -> None:
    """Initialise the linear layers of these parts as Glorot and Bengio (2010) do.

    Image and words meet in the word LSTM. With torch's default the image arrives there, after
    three matrices, at a tenth of a word embedding's size, and for many epochs reports hardly
    depend on it.
    """
    for part in parts:
        for layer in part.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
