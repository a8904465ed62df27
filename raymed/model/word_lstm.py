"""Word LSTM (Jing et al. 2018, section 3.5, eq. 7)."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from raymed.model.system import Context, State, Writer, Written
from raymed.tokens import PAD


class WordLSTM(Writer):
    """Writes a sentence from its topic: p(word) = softmax(W_out h), eq. 7.

    The first input is the topic vector, the second START, then the words. What the LSTM says
    after the topic alone is not used. Its context is (topics [K, E],).

    Args:
        words: V, the number of word ids, special ones included.
        size: E, width of word embeddings and of the topic.
        hidden: H.
    """

    def __init__(self, words: int, size: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, size)
        self.lstm = nn.LSTM(size, hidden, batch_first=True)
        self.w_out = nn.Linear(hidden, words, bias=False)

    def forward(self, context: Context, passages: Tensor) -> Written:
        """Teacher-forced logits of all real next words, in one call over all passages.

        Packed: a batch's longest sentence has several times the words of its mean one.
        """
        (topics,) = context
        inputs, targets = passages[:, :-1], passages[:, 1:]
        x = torch.cat([topics.unsqueeze(1), self.embedding(inputs)], dim=1)
        lengths = 1 + (targets != PAD).sum(dim=1).cpu()
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        h, _ = pad_packed_sequence(
            self.lstm(packed)[0], batch_first=True, total_length=passages.shape[1]
        )
        return Written(self.w_out(h[:, 1:][targets != PAD]))

    def begin(self, context: Context) -> State:
        """Read the topics."""
        _, (h, c) = self.lstm(context[0].unsqueeze(1))
        return h[0], c[0]

    def step(self, words: Tensor, state: State, context: Context) -> tuple[Tensor, State]:  # noqa: ARG002
        """Read one word per sentence, ids [K] -> (logits of the next word [K, V], state)."""
        x = self.embedding(words).unsqueeze(1)
        _, (h, c) = self.lstm(x, (state[0].unsqueeze(0), state[1].unsqueeze(0)))
        return self.w_out(h[0]), (h[0], c[0])
