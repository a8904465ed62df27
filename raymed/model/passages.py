"""What a writer is taught: passages of known words, and where in them the real words stand.

All of it is worked out on the host, from word ids that lie there. A GPU that were asked how many
words a mask selects would have to finish all its work before it could answer.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from raymed.tokens import PAD


class Passages(NamedTuple):
    """K passages of up to T next words, X next words in all.

    Attributes:
        ids: word ids [K, T + 1]: START first, PAD on the right.
        contexts: [K], which row of the images' contexts, [B P] in row-major order, each passage is
            written from.
        real: bool [B, S], the sentences that the reports have.
        targets: [X], the ids of the next words, in row-major order.
        places: [X], the place of each among the K T.
        images: [X], the image each belongs to.
        packed: [K + X], the places among K (T + 1) inputs, what a passage is written from and then
            its words, in the order of a `torch.nn.utils.rnn.PackedSequence`.
        batch_sizes: of that sequence; stays on the host, where cuDNN reads it.
        unpacked: [X], the place in that sequence of the input that each next word follows.
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
        """Passages [K, T + 1], each of the context and the image of that number [K]; all on the
        host."""
        targets = ids[:, 1:]
        counted = targets != PAD
        passage, place = counted.nonzero(as_tuple=True)
        # The first input of every passage is what it is written from, its words follow.
        inputs = torch.cat([torch.ones_like(counted[:, :1]), counted], dim=1)
        lengths = inputs.sum(dim=1)
        rank = torch.empty_like(lengths)
        rank[lengths.argsort(descending=True, stable=True)] = torch.arange(len(ids))
        owner, step = inputs.nonzero(as_tuple=True)
        order = (step * len(ids) + rank[owner]).argsort()
        position = torch.zeros_like(inputs, dtype=torch.int64)
        position[owner[order], step[order]] = torch.arange(len(order))
        return cls(
            ids=ids,
            contexts=contexts,
            real=real,
            targets=targets[counted],
            positions=passage * targets.shape[1] + place,
            images=images[passage],
            packed=(owner * inputs.shape[1] + step)[order],
            batch_sizes=inputs.sum(dim=0)[: int(lengths.max())],
            unpacked=position[passage, place + 1],
        )

    def to(self, device: torch.device) -> "Passages":
        """On a device, but for ``batch_sizes``."""
        moved = (each.to(device, non_blocking=True) for each in self)
        return Passages(*moved)._replace(batch_sizes=self.batch_sizes)

    def pin_memory(self) -> "Passages":
        """In memory that a GPU copies from by itself."""
        return Passages(*(each.pin_memory() for each in self))._replace(
            batch_sizes=self.batch_sizes
        )


def select(x: Tensor, positions: Tensor) -> Tensor:
    """Rows of x [K, T, ...] by their places among the K T: [X, ...]."""
    return x.flatten(0, 1).index_select(0, positions)
