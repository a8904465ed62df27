"""Word LSTM (Jing et al. 2018, section 3.5, eq. 7)."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from raymed.model.passages import Passages, select
from raymed.model.precision import LSTM
from raymed.model.system import Context, Decoder, DecoderOutputs, State


class WordLSTM(Decoder):
    """Decodes a sentence from its topic: p(word) = softmax(W_out h), eq. 7.

    The first input is the topic vector, the second START, then the words. The output after the
    topic alone is not used. The context is (topics [K, E],).

    Args:
        words: V, the number of word ids, special ones included.
        size: E, width of word embeddings and of the topic.
        hidden: H.
    """

    def __init__(self, words: int, size: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, size)
        self.lstm = LSTM(size, hidden, batch_first=True)
        self.w_out = nn.Linear(hidden, words, bias=False)

    def forward(
        self, context: Context, passages: Passages, seeds: Tensor | None = None
    ) -> DecoderOutputs:
        """Teacher-forced logits of all real next words, in one call over all passages.

        Packed, because the longest sentence of a batch is several times as long as the average.
        """
        (topics,) = context
        x = torch.cat([topics.unsqueeze(1), self.embed(passages.ids[:, :-1], seeds)], dim=1)
        packed = PackedSequence(select(x, passages.packed), passages.batch_sizes)
        h = self.lstm(packed)[0].data
        outputs = self.drop_outputs(h.index_select(0, passages.unpacked), passages, seeds)
        return DecoderOutputs(self.w_out(outputs))

    def initial_state(self, context: Context) -> State:
        """Read the topics."""
        _, (h, c) = self.lstm(context[0].unsqueeze(1))
        return h[0], c[0]

    def step(self, words: Tensor, state: State, context: Context) -> tuple[Tensor, State]:  # noqa: ARG002
        """Read one word per sentence, ids [K] -> (logits of the next word [K, V], state)."""
        x = self.embedding(words).unsqueeze(1)
        _, (h, c) = self.lstm(x, (state[0].unsqueeze(0), state[1].unsqueeze(0)))
        return self.w_out(h[0]), (h[0], c[0])
