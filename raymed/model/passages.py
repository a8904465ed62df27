"""What a decoder learns from: passages of known words, and the positions of the real words.

Everything is computed on the host, from word ids in its memory. To count the words that a mask
selects, a GPU would first have to finish all its pending work.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raymed.tokens import PAD


class Passages(NamedTuple):
    """K passages of up to T next words, X next words in total.

    Attributes:
        ids: Word ids [K, T + 1]: START first, PAD on the right.
        contexts: [K], the context of each passage, as a row of the images' contexts, which are
            [B P] in row-major order.
        real: bool [B, S], the sentences that the reports have.
        targets: [X], the ids of the next words, in row-major order.
        positions: [X], the position of each among the K T.
        images: [X], the image that each belongs to.
        packed: [K + X], the positions among the K (T + 1) inputs (a passage's context, then its
            words) in the order of a `torch.nn.utils.rnn.PackedSequence`.
        batch_sizes: The batch sizes of that sequence; on the host, where cuDNN reads them.
        unpacked: [X], the position in that sequence of the input that each next word follows.
    """

    ids: Tensor
    contexts: Tensor
    real: Tensor
    targets: Tensor
    positions: Tensor
    images: Tensor
    packed: Tensor
    batch_sizes: Tensor
    unpacked: Tensor

    @classmethod
    def of(cls, ids: Tensor, contexts: Tensor, images: Tensor, real: Tensor) -> "Passages":
        """Build passages from word ids, on the host.

        Args:
            ids: Word ids [K, T + 1].
            contexts: The context of each passage [K].
            images: The image of each passage [K].
            real: bool [B, S], the sentences that the reports have.
        """
        targets = ids[:, 1:]
        counted = targets != PAD
        passage, position = counted.nonzero(as_tuple=True)
        # The first input of every passage is its context; its words follow.
        inputs = torch.cat([torch.ones_like(counted[:, :1]), counted], dim=1)
        lengths = inputs.sum(dim=1)
        rank = torch.empty_like(lengths)
        rank[lengths.argsort(descending=True, stable=True)] = torch.arange(len(ids))
        owner, step = inputs.nonzero(as_tuple=True)
        order = (step * len(ids) + rank[owner]).argsort()
        packed_position = torch.zeros_like(inputs, dtype=torch.int64)
        packed_position[owner[order], step[order]] = torch.arange(len(order))
        return cls(
            ids=ids,
            contexts=contexts,
            real=real,
            targets=targets[counted],
            positions=passage * targets.shape[1] + position,
            images=images[passage],
            packed=(owner * inputs.shape[1] + step)[order],
            batch_sizes=inputs.sum(dim=0)[: int(lengths.max())],
            unpacked=packed_position[passage, position + 1],
        )

    def to(self, device: torch.device) -> "Passages":
        """A copy on ``device``, except ``batch_sizes``."""
        moved = (each.to(device, non_blocking=True) for each in self)
        return Passages(*moved)._replace(batch_sizes=self.batch_sizes)

    def pin_memory(self) -> "Passages":
        """A copy in pinned memory, from which a GPU copies asynchronously."""
        return Passages(*(each.pin_memory() for each in self))._replace(
            batch_sizes=self.batch_sizes
        )


def select(x: Tensor, positions: Tensor) -> Tensor:
    """The rows of x [K, T, ...] at ``positions`` [X] among the K T: [X, ...]."""
    return x.flatten(0, 1).index_select(0, positions)


def unroll(
    step: Callable[[Tensor, Any, Any], tuple[Any, ...]],
    embedded: Tensor,
    state: tuple[Tensor, ...],
    context: tuple[Tensor, ...],
    passages: Passages,
) -> list[Tensor]:
    """Read passages word by word, each step over those that have a word there, and no others.

    In a batch the longest passage may be several times as long as the mean.

    Args:
        step: Takes words [k, E], their state and context, tensors [k, ...], and returns its
            outputs, tensors [k, ...], followed by the next state.
        embedded: The words that are read [K, T, E].
        state: The state before the first word, tensors [K, ...].
        context: Tensors [K, ...].
        passages: The K passages.

    Returns:
        Each output of all steps [X, ...], in the order of the next words.
    """
    count, width = passages.ids.shape
    by_length = passages.packed[:count] // width
    owner, position = passages.packed[count:] // width, passages.packed[count:] % width - 1
    sizes = passages.batch_sizes[1:].tolist()
    words = select(embedded, owner * (width - 1) + position).split(sizes)
    state, context = (tuple(x.index_select(0, by_length) for x in of) for of in (state, context))
    steps = []
    for word in words:
        if len(word) < count:
            # Only where passages end: each slice costs its backward pass a copy of the whole.
            count = len(word)
            state, context = (tuple(x[:count] for x in of) for of in (state, context))
        *outputs, state = step(word, state, context)
        steps.append(outputs)
    first = len(passages.ids)
    return [
        torch.cat(each).index_select(0, passages.unpacked - first)
        for each in zip(*steps, strict=True)
    ]


def scatter(x: Tensor, passages: Passages) -> Tensor:
    """The opposite of `select`: x [X, ...], one for each next word, as [K, T, ...], else 0."""
    count, width = passages.ids.shape
    rows = x.new_zeros(count * (width - 1), *x.shape[1:])
    return rows.index_copy(0, passages.positions, x).unflatten(0, (count, width - 1))
