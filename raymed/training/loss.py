"""The joint loss over tags, stops, words and attention (Jing et al. 2018, eqs. 8 and 9).

Each term is a sum per image, and the loss of a batch is the mean over its images, so that the
weights mean the same at any batch size and with any number of workers.
"""

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from raymed.data.batches import IGNORED, Batch
from raymed.model.precision import at_least_float32
from raymed.model.system import NextWords, Outputs
from raymed.sections import LossConfig


@dataclass(frozen=True)
class LossTerms:
    """The unweighted terms of the loss, each [B].

    Attributes:
        tag: CE(p_l, softmax) with p_l = l / norm1(l); 0 for an image without tags.
        sent: sum_s CE(stop_s, [s = S]).
        word: sum_s sum_t CE(word_s,t), the END of each sentence included; with smoothed targets if
            the configuration has label smoothing.
        attention: sum_n (1 - sum_s alpha_n,s)^2 + sum_m (1 - sum_s beta_m,s)^2, over the report's
            own sentences; or the regularisation of the system's own paper.

    A term the system lacks is 0.
    """

    tag: Tensor
    sent: Tensor
    word: Tensor
    attention: Tensor

    def total(self, weights: LossConfig) -> Tensor:
        """The weighted sum of the terms, [B]."""
        parts = [getattr(weights, f.name) * getattr(self, f.name) for f in fields(self)]
        return torch.stack(parts).sum(dim=0)


def loss_terms(outputs: Outputs, batch: Batch, label_smoothing: float = 0.0) -> LossTerms:
    """The terms of eqs. 8 and 9 for each image of the batch; the smoothing is `word_loss`'s."""
    tag = tag_loss(outputs.tag_logits, batch.tags)
    none = torch.zeros_like(tag)
    stops, words, penalty = outputs.stop_logits, outputs.words, outputs.attention_penalty
    return LossTerms(
        tag=tag,
        sent=none if stops is None else stop_loss(stops, batch.stops),
        word=none if words is None else word_loss(words, len(tag), label_smoothing),
        attention=none if penalty is None else penalty,
    )


def tag_loss(logits: Tensor, tags: Tensor) -> Tensor:
    """Logits [B, L] and multi-hot tags [B, L] -> [B]."""
    target = tags / tags.sum(dim=1, keepdim=True).clamp(min=1)
    return -(target * logits.log_softmax(dim=1)).sum(dim=1)


def stop_loss(logits: Tensor, stops: Tensor) -> Tensor:
    """Logits [B, S, 2] and stops [B, S] (1, 0, or -1 where there is no sentence) -> [B]."""
    losses = F.cross_entropy(logits.transpose(1, 2), stops, ignore_index=IGNORED, reduction="none")
    return losses.sum(dim=1)


def word_loss(words: NextWords, images: int, label_smoothing: float = 0.0) -> Tensor:
    """The next words of ``images`` images -> [B].

    With label smoothing e, the target of a word w is no longer all w but (1 - e) w + e / V of each
    of the V word ids (Szegedy et al. 2016, eq. 3 with a uniform u): a word's loss is
    -(1 - e) log p_w - e / V sum_v log p_v.

    Args:
        words: The next words.
        images: B.
        label_smoothing: e, from 0 to below 1.
    """
    losses = F.cross_entropy(
        at_least_float32(words.logits),
        words.targets,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return losses.new_zeros(images).index_add(0, words.images, losses)
