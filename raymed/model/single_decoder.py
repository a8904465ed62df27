"""Systems with a single decoder: the report is one sequence that contains sentence boundaries."""

from abc import abstractmethod
from dataclasses import replace

import torch
from torch import Tensor

from raymed.image_tensors import Images
from raymed.model.passages import Passages
from raymed.model.system import (
    Context,
    Decoder,
    DecoderOutputs,
    EncodedImages,
    NextWords,
    Outputs,
    Reading,
    System,
    passage_seeds,
)
from raymed.tokens import END, PAD, START, UNKNOWN


class ReportDecoder(Decoder):
    """Decodes a whole report: START separates its sentences, END ends it."""

    forbidden_ids = (PAD, UNKNOWN)


class SingleDecoder(System):
    """A captioning model applied to paragraphs: sentences and report end where its words say so.

    These models were designed for one sentence and predict no tags; here they share the encoder
    and the tag classifier of the other systems and train them too (``loss.tag`` 0 trains the words
    alone). The arguments are those of `System`.
    """

    writer: ReportDecoder

    @abstractmethod
    def describe(self, encoded: EncodedImages) -> tuple[Context, Tensor | None]:
        """The decoder's context, and the tags [B, M] it attends to, if any."""

    def penalty(
        self,
        decoded: DecoderOutputs,  # noqa: ARG002
        real: Tensor,  # noqa: ARG002
        present: Tensor | None,  # noqa: ARG002
    ) -> Tensor | None:
        """The attention regularisation [B] of the system's paper; None without any.

        Args:
            decoded: A teacher-forced pass over B reports.
            real: bool [B, T], False for padding.
            present: bool [B, N], as in `EncodedImages`.
        """
        return None

    def passages(self, reports: Tensor) -> Passages:
        """A passage for each report."""
        images = torch.arange(len(reports))
        return Passages.of(as_sequences(reports), images, images, reports[:, :, 0] == START)

    def forward(self, images: Images, passages: Passages, seeds: Tensor | None = None) -> Outputs:
        encoded = self.encode(images, seeds)
        context, _ = self.describe(encoded)
        decoded = self.writer(context, passages, passage_seeds(seeds, passages, contexts=1))
        words = NextWords(decoded.logits, passages.targets, passages.images)
        real = passages.ids[:, 1:] != PAD
        return Outputs(
            encoded.tag_logits, None, words, self.penalty(decoded, real, encoded.present)
        )

    def read(self, images: Images, sentences: int) -> Reading:  # noqa: ARG002
        encoded = self.encode(images, seeds=None)
        context, tag_ids = self.describe(encoded)
        return Reading(
            encoded.tag_logits,
            tuple(x.unsqueeze(1) for x in context),
            tag_ids=tag_ids,
            present=encoded.present,
        )

    def add_attention(self, reading: Reading, passages: Passages) -> Reading:
        """The mean attention over the words of each sentence."""
        sequences, targets = passages.ids, passages.ids[:, 1:]
        decoded = self.writer(tuple(x.squeeze(1) for x in reading.context), passages)
        # The START or END that a sentence's last word leads to counts as the sentence's own.
        sentence = (sequences[:, :-1] == START).cumsum(dim=1) - 1
        numbers = torch.arange(passages.real.shape[1], device=sequences.device)
        member = (sentence.unsqueeze(1) == numbers.view(1, -1, 1)) & (targets != PAD).unsqueeze(1)
        words = member.sum(dim=2, keepdim=True).clamp(min=1)
        alpha, beta = (
            None if each is None else torch.bmm(member.to(each.dtype), each) / words
            for each in (decoded.alpha, decoded.beta)
        )
        return replace(reading, alpha=alpha, beta=beta)


def as_sequences(reports: Tensor) -> Tensor:
    """Reports [B, S, T + 2] as single sequences [B, X], padded on the right.

    ``START a END, START b c END`` becomes ``START a START b c END``: only the last END is kept. A
    truncated sentence is followed by the next one's START, and a truncated report ends after the
    last sentence that is left.
    """
    real = reports[:, :, 0] == START
    last = real.sum(dim=1, keepdim=True) - 1 == torch.arange(real.shape[1], device=real.device)
    keep = (reports != PAD) & ((reports != END) | last.unsqueeze(2))
    keep, flat = keep.flatten(1), reports.flatten(1)
    order = keep.int().argsort(dim=1, descending=True, stable=True)
    longest = int(keep.sum(dim=1).max())
    sequences = flat.masked_fill(~keep, PAD).gather(1, order)
    return sequences[:, :longest]
