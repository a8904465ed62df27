"""``soft_att``: Show, Attend and Tell with soft attention (Xu et al. 2015)."""

import torch
from torch import Tensor, nn

from raymed.model.attention import Attention, coverage_penalty, mean_region
from raymed.model.encoder import Encoder
from raymed.model.passages import Passages, scatter, unroll
from raymed.model.precision import LSTMCell
from raymed.model.single_decoder import ReportDecoder, SingleDecoder
from raymed.model.system import Context, DecoderOutputs, EncodedImages, State, init_glorot
from raymed.sections import ModelConfig


class AttendingLSTM(ReportDecoder):
    """Attends to the regions a_i afresh for every word:

    alpha_t = softmax(f_att(a_i, h_t-1)),   z_t = sigmoid(f_beta(h_t-1)) sum_i alpha_t,i a_i
    h_t = LSTM([E y_t-1 ; z_t], h_t-1),     p(y_t) = softmax(L_o(E y_t-1 + L_h h_t + L_z z_t))
    c_0 = tanh(f_init,c(mean a)),           h_0 = tanh(f_init,h(mean a))

    Eqs. 1 to 7, 13 and section 4.2.1 of Xu et al.; f_att is that of eqs. 2 and 3 of Jing et
    al. The context is (a [K, N, D], W a [K, N, H]) and, of studies, which regions they have [K, N].

    Args:
        words: V.
        size: E, width of word embeddings.
        visual: D, width of a region's features.
        hidden: H.
    """

    output_layer = "l_o"

    def __init__(self, words: int, size: int, visual: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, size)
        self.attention = Attention(visual, hidden)
        self.init_h = nn.Linear(visual, hidden)
        self.init_c = nn.Linear(visual, hidden)
        self.gate = nn.Linear(hidden, 1)
        self.cell = LSTMCell(size + visual, hidden)
        self.l_h = nn.Linear(hidden, size, bias=False)
        self.l_z = nn.Linear(visual, size, bias=False)
        self.l_o = nn.Linear(size, words)

    def forward(
        self, context: Context, passages: Passages, seeds: Tensor | None = None
    ) -> DecoderOutputs:
        embedded = self.embed(passages.ids[:, :-1], seeds)
        state = self.initial_state(context)
        readout, alpha = unroll(self._attend, embedded, state, context, passages)
        outputs = self.drop_outputs(readout, passages, seeds)
        return DecoderOutputs(self.l_o(outputs), alpha=scatter(alpha, passages))

    def initial_state(self, context: Context) -> State:
        mean = mean_region(context[0], *context[2:])
        return torch.tanh(self.init_h(mean)), torch.tanh(self.init_c(mean))

    def step(self, words: Tensor, state: State, context: Context) -> tuple[Tensor, State]:
        readout, _, state = self._attend(self.embedding(words), state, context)
        return self.l_o(readout), state

    def _attend(
        self, embedded: Tensor, state: State, context: Context
    ) -> tuple[Tensor, Tensor, State]:
        """E y_t-1 [K, E] -> (the input of L_o [K, E], alpha_t [K, N], state)."""
        attended, alpha = self.attention(context[0], context[1], state[0], *context[2:])
        z = torch.sigmoid(self.gate(state[0])) * attended
        h, c = self.cell(torch.cat([embedded, z], dim=1), state)
        return embedded + self.l_h(h) + self.l_z(z), alpha, (h, c)


class Model(SingleDecoder):
    """Choices: one-layer f_att, f_init and f_beta; no dropout on the words.

    The doubly stochastic regularisation, eq. 14, is the attention term of the loss.
    """

    writer: AttendingLSTM
    visual = True
    reads_out_hidden = False

    def __init__(self, config: ModelConfig, tags: int, words: int, encoder: Encoder | None) -> None:
        super().__init__(config, tags, words, encoder)
        self.writer = AttendingLSTM(
            words, config.embedding_size, self.visual_width, config.hidden_size
        )
        init_glorot(self.writer)

    def describe(self, encoded: EncodedImages) -> tuple[Context, Tensor | None]:
        present = () if encoded.present is None else (encoded.present,)
        return (encoded.v, self.writer.attention.keys(encoded.v), *present), None

    def penalty(
        self, decoded: DecoderOutputs, real: Tensor, present: Tensor | None
    ) -> Tensor | None:
        return coverage_penalty(decoded.alpha, real, present)
