"""The systems with a single LSTM: the report as one sequence with sentence boundaries in it."""

from abc import abstractmethod

import torch
from torch import Tensor

from raymed.model.encoder import Images
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
)
from raymed.tokens import END, PAD, START, UNKNOWN


class ReportDecoder(Decoder):
    """Writes a whole report: START begins every sentence but the first, END ends the report."""

    forbidden_ids = (PAD, UNKNOWN)


class SingleLSTM(System):
    """A captioning model that writes paragraphs: its words themselves end sentence and report.

    These models were made for one sentence and predict no tags; here each shares the encoder and
    the tag classifier of the other systems and trains them with it (``loss.tag`` 0 trains the
    words alone). Args as in `System`.
    """

    writer: ReportDecoder

    @abstractmethod
    def describe(self, encoded: EncodedImages) -> tuple[Context, Tensor | None]:
        """What the writer starts from, and the tags [B, M] it attends to, if any."""

    def penalty(self, written: DecoderOutputs, real: Tensor) -> Tensor | None:  # noqa: ARG002
        """The attention regularisation [B] of the system's paper; ``real`` [B, T]: not padding."""
        return None

    def passages(self, reports: Tensor) -> Passages:
        """A passage for each report."""
        images = torch.arange(len(reports))
        return Passages.of(as_sequences(reports), images, images, reports[:, :, 0] == START)

    def forward(self, images: Images, passages: Passages, seeds: Tensor | None = None) -> Outputs:
        encoded = self.encode(images, seeds)
        context, _ = self.describe(encoded)
        written = self.writer(context, passages)
        words = NextWords(written.logits, passages.targets, passages.images)
        real = passages.ids[:, 1:] != PAD
        return Outputs(encoded.tag_logits, None, words, self.penalty(written, real))

    def read(self, images: Images, sentences: int) -> Reading:  # noqa: ARG002
        encoded = self.encode(images, seeds=None)
        context, tag_ids = self.describe(encoded)
        return Reading(encoded.tag_logits, tuple(x.unsqueeze(1) for x in context), tag_ids=tag_ids)

    def add_attention(self, reading: Reading, passages: Passages) -> Reading:
        """The mean attention over the words of each sentence."""
        sequences, targets = passages.ids, passages.ids[:, 1:]
        written = self.writer(tuple(x.squeeze(1) for x in reading.context), passages)
        # The START or END that a sentence's last word leads to counts as the sentence's own.
        sentence = (sequences[:, :-1] == START).cumsum(dim=1) - 1
        numbers = torch.arange(passages.real.shape[1], device=sequences.device)
        member = (sentence.unsqueeze(1) == numbers.view(1, -1, 1)) & (targets != PAD).unsqueeze(1)
        words = member.sum(dim=2, keepdim=True).clamp(min=1)
        alpha, beta = (
            None if each is None else torch.bmm(member.to(each.dtype), each) / words
            for each in (written.alpha, written.beta)
        )
        return Reading(
            reading.tag_logits, reading.context, None, reading.tag_ids, alpha=alpha, beta=beta
        )


def as_sequences(reports: Tensor) -> Tensor:
    """Reports [B, S, T + 2] as single sequences [B, X], padded on the right.

    ``START a END, START b c END`` becomes ``START a START b c END``: of the ENDs only the last
    stays. A sentence that was cut goes into the next one's START, and a report that was cut ends
    after its last sentence that is left.
    """
    real = reports[:, :, 0] == START
    last = real.sum(dim=1, keepdim=True) - 1 == torch.arange(real.shape[1], device=real.device)
    keep = (reports != PAD) & ((reports != END) | last.unsqueeze(2))
    keep, flat = keep.flatten(1), reports.flatten(1)
    order = keep.int().argsort(dim=1, descending=True, stable=True)
    longest = int(keep.sum(dim=1).max())
    sequences = flat.masked_fill(~keep, PAD).gather(1, order)
    return sequences[:, :longest]
