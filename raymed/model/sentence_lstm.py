"""Sentence LSTM with topic generator and stop control (Jing et al. 2018, section 3.4)."""

import torch
from torch import Tensor, nn

from raymed.model.precision import Linear, LSTMCell

State = tuple[Tensor, Tensor]


class SentenceLSTM(nn.Module):
    """One step per sentence: from a context vector to a topic and a stop distribution.

    eq. 5: t = tanh(W_t,h h + W_t,ctx ctx)
    eq. 6: p(STOP) = softmax(W_stop tanh(W_stop,s-1 h_previous + W_stop,s h)); class 1 is STOP

    Args:
        hidden: H, width of h and ctx.
        topic: E, width of the topic vector.
    """

    def __init__(self, hidden: int, topic: int) -> None:
        super().__init__()
        self.cell = LSTMCell(hidden, hidden)
        self.w_t_h = nn.Linear(hidden, topic, bias=False)
        self.w_t_ctx = nn.Linear(hidden, topic, bias=False)
        self.w_stop_previous = nn.Linear(hidden, hidden, bias=False)
        self.w_stop_current = nn.Linear(hidden, hidden, bias=False)
        self.w_stop = Linear(hidden, 2, bias=False)

    def initial_state(self, images: int) -> State:
        """The state before the first sentence: zeros (h [B, H], c [B, H])."""
        zeros = self.cell.weight_hh.new_zeros(images, self.cell.hidden_size)
        return zeros, zeros

    def forward(self, ctx: Tensor, state: State) -> State:
        """ctx [B, H] and the state after the previous sentence -> the state after this one."""
        h, c = self.cell(ctx, state)
        return h, c

    def plan(self, ctx: Tensor, h_previous: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Topics [B, S, E] and stop logits [B, S, 2] of all sentences at once: no state needs them.

        Args:
            ctx: Each sentence's context vector [B, S, H].
            h_previous: The hidden state before it [B, S, H].
            h: The hidden state after it [B, S, H].
        """
        topics = torch.tanh(self.w_t_h(h) + self.w_t_ctx(ctx))
        stops = self.w_stop(torch.tanh(self.w_stop_previous(h_previous) + self.w_stop_current(h)))
        return topics, stops
