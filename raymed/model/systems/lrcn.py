"""``lrcn``: long-term recurrent convolutional network (Donahue et al. 2015), LRCN-2f."""

import torch
from torch import Tensor, nn

from raymed.model.encoder import Encoder
from raymed.model.passages import Passages, select
from raymed.model.precision import LSTM
from raymed.model.single_decoder import ReportDecoder, SingleDecoder
from raymed.model.system import Context, DecoderOutputs, EncodedImages, State, init_glorot
from raymed.sections import ModelConfig


class FactoredLSTM(ReportDecoder):
    """Two stacked LSTMs; the image enters the second at every step, and never the first:

    h1_t = LSTM_1(W_e w_t),    h2_t = LSTM_2([h1_t ; x]),    p(word) = softmax(W_out h2_t)

    The context is the image x [K, E].

    Args:
        words: V.
        size: E, width of word embeddings and of the image.
        hidden: H, of both LSTMs.
    """

    def __init__(self, words: int, size: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, size)
        self.lstm_1 = LSTM(size, hidden, batch_first=True)
        self.lstm_2 = LSTM(hidden + size, hidden, batch_first=True)
        self.w_out = nn.Linear(hidden, words)

    def forward(
        self, context: Context, passages: Passages, seeds: Tensor | None = None
    ) -> DecoderOutputs:
        inputs = passages.ids[:, :-1]
        h1, _ = self.lstm_1(self.embed(inputs, seeds))
        image = context[0].unsqueeze(1).expand(-1, inputs.shape[1], -1)
        h2, _ = self.lstm_2(torch.cat([h1, image], dim=2))
        outputs = self.drop_outputs(select(h2, passages.positions), passages, seeds)
        return DecoderOutputs(self.w_out(outputs))

    def initial_state(self, context: Context) -> State:
        zeros = self.w_out.weight.new_zeros(context[0].shape[0], self.lstm_1.hidden_size)
        return zeros, zeros, zeros, zeros

    def step(self, words: Tensor, state: State, context: Context) -> tuple[Tensor, State]:
        h1, c1, h2, c2 = (each.unsqueeze(0) for each in state)
        out, (h1, c1) = self.lstm_1(self.embedding(words).unsqueeze(1), (h1, c1))
        encoded = torch.cat([out, context[0].unsqueeze(1)], dim=2)
        out, (h2, c2) = self.lstm_2(encoded, (h2, c2))
        return self.w_out(out[:, 0]), (h1[0], c1[0], h2[0], c2[0])


class Model(SingleDecoder):
    """The image is x = W_I f + b.

    Choices: f is the overall image feature, and W_I, of width E, stands where Donahue et al. have
    fc8, the linear layer over their CNN's fc7. Without it, F inputs per word would cost several
    times as much as all the rest of the decoder.
    """

    def __init__(self, config: ModelConfig, tags: int, words: int, encoder: Encoder | None) -> None:
        super().__init__(config, tags, words, encoder)
        self.w_image = nn.Linear(self.tag_classifier.width, config.embedding_size)
        self.writer = FactoredLSTM(words, config.embedding_size, config.hidden_size)
        init_glorot(self.w_image, self.writer)

    def describe(self, encoded: EncodedImages) -> tuple[Context, Tensor | None]:
        return (self.w_image(encoded.feature),), None
