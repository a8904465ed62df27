"""The joint loss over tags, stops, words and attention (Jing et al. 2018, eqs. 8 and 9).

Each term is a sum per image; the loss of a batch is the mean over its images, so the weights
mean the same at any batch size and any number of workers.
"""

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from raymed.config import LossConfig
from raymed.data.batches import IGNORED, Batch
from raymed.model.hierarchical import Outputs
from raymed.tokens import PAD


@dataclass(frozen=True)
class Terms:
    """The unweighted terms of the loss, each [B].

    Attributes:
        tag: CE(p_l, softmax) with p_l = l / norm1(l); 0 for an image without tags.
        sent: sum_s CE(stop_s, [s = S]).
        word: sum_s sum_t CE(word_s,t), the END of each sentence included.
        attention: sum_n (1 - sum_s alpha_n,s)^2 + sum_m (1 - sum_s beta_m,s)^2, over the report's
            own sentences.
    """

    tag: Tensor
    sent: Tensor
    word: Tensor
    attention: Tensor

    def total(self, weights: LossConfig) -> Tensor:
        """The weighted sum of the terms, [B]."""
        parts = [getattr(weights, f.name) * getattr(self, f.name) for f in fields(self)]
        return torch.stack(parts).sum(dim=0)


def terms(outputs: Outputs, batch: Batch) -> Terms:
    """The terms of eqs. 8 and 9 for each image of the batch."""
    topics = outputs.topics
    real = (batch.stops != IGNORED).unsqueeze(2)
    return Terms(
        tag=tag_loss(topics.tag_logits, batch.tags),
        sent=stop_loss(topics.stop_logits, batch.stops),
        word=word_loss(outputs.word_logits, batch.reports),
        attention=attention_loss(topics.alpha * real) + attention_loss(topics.beta * real),
    )


def tag_loss(logits: Tensor, tags: Tensor) -> Tensor:
    """Logits [B, L] and multi-hot tags [B, L] -> [B]."""
    target = tags / tags.sum(dim=1, keepdim=True).clamp(min=1)
    return -(target * logits.log_softmax(dim=1)).sum(dim=1)


def stop_loss(logits: Tensor, stops: Tensor) -> Tensor:
    """Logits [B, S, 2] and stops [B, S] (1, 0, or -1 for no sentence) -> [B]."""
    losses = F.cross_entropy(logits.transpose(1, 2), stops, ignore_index=IGNORED, reduction="none")
    return losses.sum(dim=1)


def word_loss(logits: Tensor, reports: Tensor) -> Tensor:
    """Logits [X, V] of the real next words and reports [B, S, T + 2] -> [B]."""
    targets = reports[:, :, 1:]
    real = targets != PAD
    losses = F.cross_entropy(logits, targets[real], reduction="none")
    image = real.nonzero()[:, 0]
    return losses.new_zeros(len(reports)).index_add(0, image, losses)


def attention_loss(attention: Tensor) -> Tensor:
    """Attention [B, S, N], 0 past a report's last sentence -> sum_n (1 - sum_s)^2, [B]."""
    return (1 - attention.sum(dim=1)).square().sum(dim=1)
