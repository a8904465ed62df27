"""Word LSTM (Jing et al. 2018, section 3.5, eq. 7)."""

import torch
from torch import Tensor, nn

from raymed.tokens import PAD, START

State = tuple[Tensor, Tensor]


class WordLSTM(nn.Module):
    """Writes a sentence from its topic: p(word) = softmax(W_out h), eq. 7.

    The first input is the topic vector, the second START, then the words. What the LSTM says
    after the topic alone is not used.

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

    def forward(self, topics: Tensor, sentences: Tensor) -> Tensor:
        """Teacher-forced logits of all real next words of K sentences, in one call.

        Args:
            topics: [K, E].
            sentences: [K, T + 1] word ids, START first, padded with PAD on the right.

        Returns:
            [X, V]: a row for each position of ``sentences[:, 1:]`` that is not PAD, in row-major
            order. Padding stands on the right of a causal LSTM, so it changes nothing before it.
        """
        inputs, targets = sentences[:, :-1], sentences[:, 1:]
        x = torch.cat([topics.unsqueeze(1), self.embedding(inputs)], dim=1)
        h, _ = self.lstm(x)
        logits: Tensor = self.w_out(h[:, 1:][targets != PAD])
        return logits

    def begin(self, topics: Tensor) -> tuple[Tensor, State]:
        """Read topics [K, E] and START -> (logits of the first word [K, V], state)."""
        _, state = self.lstm(topics.unsqueeze(1))
        start = torch.full((len(topics),), START, device=topics.device)
        return self.step(start, state)

    def step(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one word per sentence, ids [K] -> (logits of the next word [K, V], state)."""
        h, state = self.lstm(self.embedding(words).unsqueeze(1), state)
        return self.w_out(h.squeeze(1)), state
