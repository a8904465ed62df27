"""``att_rk``: image captioning with semantic attention (You et al. 2016), ATT with ranked tags."""

import torch
from torch import Tensor, nn

from raymed.model.encoder import Encoder
from raymed.model.passages import Passages, scatter, unroll
from raymed.model.precision import LSTMCell, at_least_float32
from raymed.model.single_decoder import ReportDecoder, SingleDecoder
from raymed.model.system import Context, DecoderOutputs, EncodedImages, State, init_glorot
from raymed.model.tags import SemanticFeatures
from raymed.sections import ModelConfig

P, Q = 2.0, 0.5
"""Exponents of the regularisation: P above 1 spreads attention over the tags of a report; Q below
1 concentrates it on few tags at each word."""
SMALLEST = 1e-6
"""Attention below this gets no gradient, because that of its root would approach infinity."""


class SemanticLSTM(ReportDecoder):
    """Attends to the tags' embeddings a_i before and after the LSTM, for every word:

    x_0 = W_xv f
    alpha_t = softmax_i(y_t-1' U a_i),      x_t = W_xY (y_t-1 + w_xA * sum_i alpha_t,i a_i)
    h_t = LSTM(x_t, h_t-1)
    beta_t = softmax_i(h_t' V tanh(a_i)),
    p(y_t) = softmax(E (W_Yh h_t + w_YA * sum_i beta_t,i tanh(a_i)))

    Eqs. 2 and 4 to 7 of You et al.; y_t-1 is the previous word's embedding, E the matrix of all
    embeddings, shared by input and output. The context is (f [K, F], a [K, M, E]) and the result
    of `keys` for a.

    Args:
        words: V.
        size: E, width of word and tag embeddings.
        feature: F, width of the image feature.
        hidden: H.
    """

    def __init__(self, words: int, size: int, feature: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, size)
        self.w_xv = nn.Linear(feature, size, bias=False)
        self.u = nn.Linear(size, size, bias=False)
        self.w_xa = nn.Parameter(torch.ones(size))
        self.w_xy = nn.Linear(size, size, bias=False)
        self.cell = LSTMCell(size, hidden)
        self.v = nn.Linear(size, hidden, bias=False)
        self.w_yh = nn.Linear(hidden, size, bias=False)
        self.w_ya = nn.Parameter(torch.ones(size))
        # Shared by input and output: with unit variance, logits would have a variance of E.
        nn.init.normal_(self.embedding.weight, std=size**-0.5)

    def tie_embeddings(self) -> None:
        """They always are."""

    def keys(self, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """U a [K, M, E], tanh(a) [K, M, E] and V tanh(a) [K, M, H]: the same for every word."""
        active = torch.tanh(a)
        return self.u(a), active, self.v(active)

    def forward(
        self, context: Context, passages: Passages, seeds: Tensor | None = None
    ) -> DecoderOutputs:
        embedded = self.embed(passages.ids[:, :-1], seeds)
        state = self.initial_state(context)
        readout, alpha, beta = unroll(self._attend, embedded, state, context, passages)
        outputs = self.drop_outputs(readout, passages, seeds)
        logits = outputs @ self.embedding.weight.T
        beta, beta_read = (scatter(each, passages) for each in (beta, alpha))
        return DecoderOutputs(logits, beta=beta, beta_read=beta_read)

    def initial_state(self, context: Context) -> State:
        return self.cell(self.w_xv(context[0]))

    def step(self, words: Tensor, state: State, context: Context) -> tuple[Tensor, State]:
        readout, _, _, state = self._attend(self.embedding(words), state, context)
        return readout @ self.embedding.weight.T, state

    def _attend(
        self, embedded: Tensor, state: State, context: Context
    ) -> tuple[Tensor, Tensor, Tensor, State]:
        """y_t-1 [K, E] -> (the input of E [K, E], alpha_t [K, M], beta_t [K, M], state)."""
        _, a, key_in, active, key_out = context
        alpha = at_least_float32(torch.einsum("ke,kme->km", embedded, key_in)).softmax(dim=1)
        x = self.w_xy(embedded + self.w_xa * torch.einsum("km,kme->ke", alpha, a))
        h, c = self.cell(x, state)
        beta = at_least_float32(torch.einsum("kh,kmh->km", h, key_out)).softmax(dim=1)
        readout = self.w_yh(h) + self.w_ya * torch.einsum("km,kme->ke", beta, active)
        return readout, alpha, beta, (h, c)


class Model(SingleDecoder):
    """Choices: the tags are the classifier's M most probable, with separate embeddings, because a
    tag may be several words; W_Yh projects h to the embeddings' width before the tags are added,
    so that the two widths may differ; the attention term of the loss is eq. 12 with p = 2,
    q = 0.5.
    """

    writer: SemanticLSTM
    reads_out_hidden = False

    def __init__(self, config: ModelConfig, tags: int, words: int, encoder: Encoder | None) -> None:
        super().__init__(config, tags, words, encoder)
        size = config.embedding_size
        self.semantic_features = SemanticFeatures(tags, config.top_tags, size)
        self.writer = SemanticLSTM(words, size, self.tag_classifier.width, config.hidden_size)
        init_glorot(self.writer)

    def describe(self, encoded: EncodedImages) -> tuple[Context, Tensor | None]:
        a, tag_ids = self.semantic_features(encoded.tag_logits)
        return (encoded.feature, a, *self.writer.keys(a)), tag_ids

    def penalty(
        self,
        decoded: DecoderOutputs,
        real: Tensor,
        present: Tensor | None,  # noqa: ARG002
    ) -> Tensor | None:
        assert decoded.beta is not None
        assert decoded.beta_read is not None
        return spread(decoded.beta_read, real) + spread(decoded.beta, real)


def spread(attention: Tensor, real: Tensor) -> Tensor:
    """g(A) = (sum_i (sum_t A_t,i)^P)^(1/P) + sum_t (sum_i A_t,i^Q)^(1/Q), eq. 12 of You et al.

    Args:
        attention: [B, T, M].
        real: bool [B, T], False beyond the report's end.

    Returns:
        [B].
    """
    kept = attention * real.unsqueeze(2)
    over_report = kept.sum(dim=1).pow(P).sum(dim=1).pow(1 / P)
    over_tags = attention.clamp(min=SMALLEST).pow(Q).sum(dim=2).pow(1 / Q)
    return over_report + (over_tags * real).sum(dim=1)
