"""The hierarchical systems: tags, attention, sentence LSTM and word LSTM composed.

Jing et al. (2018), figure 2. The sentence LSTM reads only the image, never the words, so its
topics are the same in training and in generation, and all sentences are written in one call.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raymed.config import ModelConfig
from raymed.model.coattention import CoAttention
from raymed.model.encoder import build_backbone, regions
from raymed.model.sentence_lstm import SentenceLSTM
from raymed.model.tags import SemanticFeatures, TagClassifier
from raymed.model.word_lstm import WordLSTM
from raymed.tokens import START


@dataclass(frozen=True)
class Topics:
    """What the model says of B images before any word is written, over S sentences.

    Attributes:
        tag_logits: [B, L].
        tag_ids: [B, M], the tags behind the semantic features, best first.
        topics: [B, S, E].
        stop_logits: [B, S, 2]; class 1 is STOP.
        alpha: [B, S, N], visual attention of each sentence.
        beta: [B, S, M], semantic attention of each sentence.
    """

    tag_logits: Tensor
    tag_ids: Tensor
    topics: Tensor
    stop_logits: Tensor
    alpha: Tensor
    beta: Tensor


@dataclass(frozen=True)
class Outputs:
    """A training pass: `Topics` and the logits of every real word.

    Attributes:
        topics: over as many sentences as the longest report of the batch has.
        word_logits: [X, V], a row for each next word that is not PAD, in row-major order.
    """

    topics: Topics
    word_logits: Tensor


class HierarchicalModel(nn.Module):
    """``co_attention``: the paper's full model.

    Args:
        config: the model section of the configuration.
        tags: L, the size of the tag vocabulary.
        words: V, the number of word ids, special ones included.
        pretrained: load the weights that the configuration names; without it they stay random,
            as when a checkpoint is about to fill them.
    """

    def __init__(self, config: ModelConfig, tags: int, words: int, pretrained: bool) -> None:
        super().__init__()
        weights = config.encoder_weights if pretrained else "none"
        encoder, pool, fully_connected = build_backbone(config.encoder, weights)
        hidden, size = config.hidden_size, config.embedding_size
        self.encoder = encoder.requires_grad_(config.train_encoder)
        self.tag_classifier = TagClassifier(pool, fully_connected, tags, config.dropout)
        self.semantic_features = SemanticFeatures(tags, config.top_tags, size)
        self.co_attention = CoAttention(encoder.width, size, hidden)
        self.sentence_lstm = SentenceLSTM(hidden, size)
        self.word_lstm = WordLSTM(words, size, hidden)
        self._initialise()

    def _initialise(self) -> None:
        """Glorot's scale for the matrices of eqs. 2 to 7.

        Image and words meet in the word LSTM. With torch's default the topic arrives there, after
        three matrices, at a tenth of a word embedding's size, and reports hardly depend on the
        image for many epochs.
        """
        for part in (self.co_attention, self.sentence_lstm, self.word_lstm):
            for layer in part.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_uniform_(layer.weight)

    def forward(self, images: Tensor, reports: Tensor, seeds: Tensor | None = None) -> Outputs:
        """A training pass over images and their reports.

        Args:
            images: uint8 [B, H, W].
            reports: word ids [B, S, T + 2]: START, words, END, PAD; all PAD past the last sentence.
            seeds: int64 [B], drawing the dropout masks; none: no dropout.
        """
        topics = self.read(images, sentences=reports.shape[1], seeds=seeds)
        real = reports[:, :, 0] == START
        return Outputs(topics, self.word_lstm(topics.topics[real], reports[real]))

    def read(self, images: Tensor, sentences: int, seeds: Tensor | None = None) -> Topics:
        """Images uint8 [B, H, W] -> tags, and topics for so many sentences (eqs. 1 to 6)."""
        feature_map = self.encoder(images)
        tag_logits = self.tag_classifier(feature_map, seeds)
        v = regions(feature_map)
        a, tag_ids = self.semantic_features(tag_logits)
        keys = self.co_attention.keys(v, a)
        state = self.sentence_lstm.start(len(images), like=v)
        steps = []
        for _ in range(sentences):
            ctx, alpha, beta = self.co_attention(v, a, keys, h=state[0])
            topic, stop, state = self.sentence_lstm(ctx, state)
            steps.append((topic, stop, alpha, beta))
        topics, stops, alphas, betas = (
            torch.stack(each, dim=1) for each in zip(*steps, strict=True)
        )
        return Topics(tag_logits, tag_ids, topics, stops, alphas, betas)
