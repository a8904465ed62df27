"""``transformer``: the encoder-decoder baseline of later papers on report generation.

The model BASE of Chen et al. 2020 (*Generating Radiology Reports via Memory-driven Transformer*,
R2Gen without its memory), which is that of Vaswani et al. 2017 (*Attention Is All You Need*) over
an image's regions.
"""

import math

import torch
from torch import Tensor, nn

from raymed.errors import UsageError
from raymed.image_tensors import Images
from raymed.model.dropout import SeededDropout, at_site
from raymed.model.encoder import Encoder
from raymed.model.passages import Passages, select
from raymed.model.precision import at_least_float32
from raymed.model.single_decoder import ReportDecoder, SingleDecoder
from raymed.model.system import Context, DecoderOutputs, EncodedImages, State, init_glorot
from raymed.sections import ModelConfig

LAYERS, HEADS = 3, 8
"""Of the encoder and of the decoder each, and of each attention (Chen et al., section 3.3)."""
DROPOUT = 0.1
"""Default rate after each sublayer and after the embeddings (Vaswani et al., section 5.4)."""


class MultiHeadAttention(nn.Module):
    """Concat(head_1, ..., head_h) W_O with head_i = softmax(Q_i K_i' / sqrt(d / h)) V_i.

    Section 3.2.2 of Vaswani et al., with Q = x W_Q, K = y W_K and V = y W_V.

    Args:
        width: d.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w_q, self.w_k, self.w_v, self.w_o = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )

    def keys(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """K and V [K, N, d] of what is attended to, y [K, N, d]."""
        return self.w_k(y), self.w_v(y)

    def forward(
        self, x: Tensor, keys: tuple[Tensor, Tensor], hidden: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x [K, T, d] -> (the result [K, T, d], the weights of each head [K, h, T, N]).

        Args:
            x: What attends.
            keys: The result of `keys`.
            hidden: bool [T, N], or [K, 1, 1, N], True where x must not attend to y.
        """
        q, k, v = (_heads(each) for each in (self.w_q(x), *keys))
        scores = at_least_float32(q @ k.transpose(2, 3)) / math.sqrt(q.shape[3])
        if hidden is not None:
            scores = scores.masked_fill(hidden, -torch.inf)
        weights = scores.softmax(dim=3)
        attended = (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)
        return self.w_o(attended), weights


def _heads(x: Tensor) -> Tensor:
    """[K, T, d] -> [K, h, T, d / h]."""
    return x.unflatten(2, (HEADS, -1)).transpose(1, 2)


def _absent(present: Tensor | None = None) -> Tensor | None:
    """What attention must not attend to, [K, 1, 1, N], of the regions ``present`` [K, N]."""
    return None if present is None else ~present[:, None, None]


def _feed_forward(width: int) -> nn.Module:
    """W_2 relu(W_1 x), with biases; the inner width is d, as in Chen et al.'s code."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


class EncoderLayer(nn.Module):
    """Each region attends to all regions: x + f(norm(x)) for attention, then feed-forward f."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(width)
        self.feed_forward = _feed_forward(width)
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = SeededDropout(dropout)

    def forward(self, x: Tensor, seeds: Tensor | None, present: Tensor | None = None) -> Tensor:
        """x [B, N, d] -> [B, N, d]; ``seeds`` [B] determine the dropout masks.

        Nothing attends to the regions that are not ``present`` [B, N].
        """
        normal = self.norm_1(x)
        attended, _ = self.attention(normal, self.attention.keys(normal), _absent(present))
        x = x + self.dropout(attended, at_site(seeds, 0))
        changed: Tensor = x + self.dropout(self.feed_forward(self.norm_2(x)), at_site(seeds, 1))
        return changed


class RegionEncoder(nn.Module):
    """Encodes an image's regions: v_n, projected to width d, through all encoder layers.

    Args:
        visual: D, width of a region's features.
        width: d.
        dropout: Rate after the projection and after each sublayer.
    """

    def __init__(self, visual: int, width: int, dropout: float) -> None:
        super().__init__()
        self.w_v = nn.Linear(visual, width)
        self.layers = nn.ModuleList(EncoderLayer(width, dropout) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(width)
        self.dropout = SeededDropout(dropout)

    def forward(self, v: Tensor, seeds: Tensor | None, present: Tensor | None = None) -> Tensor:
        """v [B, N, D] -> [B, N, d]; ``seeds`` [B] determine the dropout masks.

        Nothing attends to the regions that are not ``present`` [B, N].
        """
        x = self.dropout(torch.relu(self.w_v(v)), seeds)
        for number, layer in enumerate(self.layers):
            x = layer(x, at_site(seeds, 1 + 2 * number), present)
        encoded: Tensor = self.norm(x)
        return encoded


class DecoderLayer(nn.Module):
    """Each word attends to the words so far, then to the regions: x + f(norm(x)) for each f."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.own = MultiHeadAttention(width)
        self.cross = MultiHeadAttention(width)
        self.feed_forward = _feed_forward(width)
        self.norm_1, self.norm_2, self.norm_3 = (nn.LayerNorm(width) for _ in range(3))
        self.dropout = SeededDropout(dropout)

    def forward(
        self, x: Tensor, past: State, regions: Context, hidden: Tensor, seeds: Tensor | None
    ) -> tuple[Tensor, Tensor, State]:
        """T more words, x [K, T, d] -> ([K, T, d], alpha [K, T, N], the keys of all words).

        Args:
            x: The words.
            past: Keys and values [K, t, d] of the words before them.
            regions: Keys and values [K, N, d] of the regions and, of studies, which of these they
                have, [K, N].
            hidden: bool [T, t + T], True for the words that follow.
            seeds: [K], which determine the dropout masks.
        """
        normal = self.norm_1(x)
        k, v = (
            torch.cat([before, new], dim=1)
            for before, new in zip(past, self.own.keys(normal), strict=True)
        )
        attended, _ = self.own(normal, (k, v), hidden)
        x = x + self.dropout(attended, at_site(seeds, 0))
        attended, weights = self.cross(
            self.norm_2(x), (regions[0], regions[1]), _absent(*regions[2:])
        )
        x = x + self.dropout(attended, at_site(seeds, 1))
        x = x + self.dropout(self.feed_forward(self.norm_3(x)), at_site(seeds, 2))
        return x, weights.mean(dim=1), (k, v)


class TransformerDecoder(ReportDecoder):
    """Decodes a report from the encoded regions: p(word) = softmax(W_out norm(x) + b).

    The context is the keys and values [K, N, d] of the regions in each layer, the result of
    `keys`, and for studies bool [K, N], which regions they have; the state is those of the words
    so far, [K, t, d], so that none is computed twice. alpha is the last layer's attention to the
    regions, averaged over its heads.

    Args:
        words: V.
        width: d, width of word embeddings and of all layers.
        dropout: Rate after the embeddings and after each sublayer.
    """

    def __init__(self, words: int, width: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.layers = nn.ModuleList(DecoderLayer(width, dropout) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(width)
        self.w_out = nn.Linear(width, words)
        self.dropout = SeededDropout(dropout)
        # Multiplied by sqrt(d) they get the variance of the positions' encodings or so.
        nn.init.normal_(self.embedding.weight, std=width**-0.5)

    def keys(self, regions: Tensor) -> Context:
        """Each layer's keys and values of the encoded regions [K, N, d]: the same for all words."""
        attentions = [part for part in self.layers if isinstance(part, DecoderLayer)]
        return tuple(each for part in attentions for each in part.cross.keys(regions))

    def forward(
        self, context: Context, passages: Passages, seeds: Tensor | None = None
    ) -> DecoderOutputs:
        x, alpha, _ = self._read(passages.ids[:, :-1], self.initial_state(context), context, seeds)
        return DecoderOutputs(self.w_out(select(x, passages.positions)), alpha=alpha)

    def initial_state(self, context: Context) -> State:
        return tuple(each[:, :0] for each in context[: 2 * len(self.layers)])

    def step(self, words: Tensor, state: State, context: Context) -> tuple[Tensor, State]:
        x, _, state = self._read(words.unsqueeze(1), state, context, seeds=None)
        return self.w_out(x[:, 0]), state

    def _read(
        self, words: Tensor, state: State, context: Context, seeds: Tensor | None
    ) -> tuple[Tensor, Tensor, State]:
        """T more words, ids [K, T] -> (input of W_out [K, T, d], alpha [K, T, N], state)."""
        before, count = state[0].shape[1], words.shape[1]
        x = self.embed(words, seeds) * math.sqrt(self.embedding.embedding_dim)
        x = self.dropout(x + sinusoids(before, before + count, x), at_site(seeds, 2))
        hidden = torch.ones(count, before + count, dtype=torch.bool, device=x.device)
        hidden = hidden.triu(before + 1)
        alpha, states, present = x, [], context[2 * len(self.layers) :]
        for number, layer in enumerate(self.layers):
            own = slice(2 * number, 2 * number + 2)
            x, alpha, now = layer(
                x, state[own], context[own] + present, hidden, at_site(seeds, 3 + 3 * number)
            )
            states += now
        return self.norm(x), alpha, tuple(states)


def sinusoids(start: int, stop: int, like: Tensor) -> Tensor:
    """sin(t / 10000^(2i/d)) and cos of the same in turn, for positions t from ``start`` [T, d].

    Section 3.5 of Vaswani et al.

    Args:
        start: The first position.
        stop: The one after the last.
        like: A tensor [..., d] with the result's width, type and device.
    """
    width = like.shape[-1]
    t = torch.arange(start, stop, dtype=like.dtype, device=like.device).unsqueeze(1)
    two_i = torch.arange(0, width, 2, dtype=like.dtype, device=like.device)
    angle = t * torch.exp(two_i * (-math.log(10000) / width))
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)


class Model(SingleDecoder):
    """The decoder attends to the encoded regions for every word; `model.hidden_size` is d.

    Choices: normalisation before each sublayer and after the last layer, no positions for the
    regions, and a feed-forward layer no wider than d, all as in Chen et al.'s code; VGG instead of
    their ResNet-101, as in the other systems. `model.embedding_size` and `model.top_tags` have no
    effect.
    """

    writer: TransformerDecoder
    visual = True
    reads_out_hidden = False

    def __init__(self, config: ModelConfig, tags: int, words: int, encoder: Encoder | None) -> None:
        super().__init__(config, tags, words, encoder)
        width = config.hidden_size
        dropout = DROPOUT if config.decoder_dropout is None else config.decoder_dropout
        self.region_encoder = RegionEncoder(self.visual_width, width, dropout)
        self.writer = TransformerDecoder(words, width, dropout)
        init_glorot(self.region_encoder, self.writer)

    @classmethod
    def check(cls, config: ModelConfig) -> None:
        super().check(config)
        if config.hidden_size % HEADS:
            raise UsageError(
                f"model.hidden_size: must be a multiple of {HEADS}, the number of attention heads "
                f"of the transformer, not {config.hidden_size}"
            )

    def encode(self, images: Images, seeds: Tensor | None) -> EncodedImages:
        encoded = super().encode(images, seeds)
        # The dropout of the encoder uses the seeds themselves, the tag classifier's the next.
        v = self.region_encoder(encoded.v, at_site(seeds, 3), encoded.present)
        return encoded._replace(v=v)

    def describe(self, encoded: EncodedImages) -> tuple[Context, Tensor | None]:
        present = () if encoded.present is None else (encoded.present,)
        return (*self.writer.keys(encoded.v), *present), None
