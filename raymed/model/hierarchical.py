"""The hierarchical systems: tags, attention, sentence LSTM and word LSTM combined.

Jing et al. (2018), figure 2. The sentence LSTM reads only the image, never the words, so its
topics are the same in training and in generation, and all sentences are decoded in one call.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from raymed.image_tensors import Images
from raymed.model.attention import CoAttention, coverage_penalty
from raymed.model.encoder import Encoder
from raymed.model.passages import Passages, select
from raymed.model.sentence_lstm import SentenceLSTM
from raymed.model.system import (
    EncodedImages,
    NextWords,
    Outputs,
    Reading,
    System,
    init_glorot,
    passage_seeds,
)
from raymed.model.tags import SemanticFeatures
from raymed.model.word_lstm import WordLSTM
from raymed.sections import ModelConfig

Attend = Callable[[Tensor], tuple[Tensor, Tensor | None, Tensor | None]]
"""h [B, H] -> (ctx [B, H], alpha [B, N], beta [B, M]); None for what is not attended to."""


class Hierarchical(System):
    """A sentence LSTM over context vectors and a word LSTM over its topics.

    A subclass chooses what the context vectors are made of: by `visual` and `semantic`, or by
    overriding `attention`. The arguments are those of `System`.
    """

    writer: WordLSTM
    semantic: ClassVar[bool] = False
    """Whether the system attends to tags."""

    def __init__(self, config: ModelConfig, tags: int, words: int, encoder: Encoder | None) -> None:
        super().__init__(config, tags, words, encoder)
        hidden, size = config.hidden_size, config.embedding_size
        if self.semantic:
            self.semantic_features = SemanticFeatures(tags, config.top_tags, size)
        if self.visual or self.semantic:
            self.co_attention = CoAttention(
                self.visual_width if self.visual else None,
                size if self.semantic else None,
                hidden,
            )
            init_glorot(self.co_attention)
        self.sentence_lstm = SentenceLSTM(hidden, size)
        self.writer = WordLSTM(words, size, hidden)
        init_glorot(self.sentence_lstm, self.writer)

    def attention(self, encoded: EncodedImages) -> tuple[Attend, Tensor | None]:
        """A function that computes each sentence's context vector, and the tags [B, M] it uses."""
        a, tag_ids = self.semantic_features(encoded.tag_logits) if self.semantic else (None, None)
        keys = self.co_attention.keys(encoded.v, a)
        return lambda h: self.co_attention(encoded.v, a, keys, h, encoded.present), tag_ids

    def forward(self, images: Images, passages: Passages, seeds: Tensor | None = None) -> Outputs:
        real = passages.real
        reading = self._read(images, real.shape[1], seeds)
        topics = select(reading.context[0], passages.contexts)
        decoded = self.writer((topics,), passages, passage_seeds(seeds, passages, real.shape[1]))
        return Outputs(
            reading.tag_logits,
            reading.stop_logits,
            NextWords(decoded.logits, passages.targets, passages.images),
            coverage_penalty(reading.alpha, real, reading.present)
            + coverage_penalty(reading.beta, real),
        )

    def read(self, images: Images, sentences: int) -> Reading:
        return self._read(images, sentences, seeds=None)

    def _read(self, images: Images, sentences: int, seeds: Tensor | None) -> Reading:
        """Tags, and the topics, stops and attention of ``sentences`` sentences (eqs. 1 to 6)."""
        encoded = self.encode(images, seeds)
        attend, tag_ids = self.attention(encoded)
        states = [self.sentence_lstm.initial_state(encoded.v.shape[0])]
        contexts, alphas, betas = [], [], []
        for _ in range(sentences):
            ctx, alpha, beta = attend(states[-1][0])
            states.append(self.sentence_lstm(ctx, states[-1]))
            contexts.append(ctx)
            alphas.append(alpha)
            betas.append(beta)
        h = torch.stack([h for h, _ in states], dim=1)
        topics, stops = self.sentence_lstm.plan(torch.stack(contexts, dim=1), h[:, :-1], h[:, 1:])
        return Reading(
            encoded.tag_logits,
            (topics,),
            stops,
            tag_ids,
            _stacked(alphas),
            _stacked(betas),
            encoded.present,
        )


def _stacked(attention: list[Tensor | None]) -> Tensor | None:
    """Each sentence's attention [B, N] -> [B, S, N], if the system has it."""
    steps = [each for each in attention if each is not None]
    return torch.stack(steps, dim=1) if steps else None
