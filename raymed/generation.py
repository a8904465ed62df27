"""Writing reports: topics first, then all passages of all images in parallel, by beam search.

A passage is a sentence where sentences are planned, else the whole report. What is written from
a topic never depends on the stop threshold, and the LSTM's state is kept, so no prefix is ever run
again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from raymed.data.vocabulary import Vocabulary
from raymed.model.encoder import Images
from raymed.model.system import Context, Decoder, Reading, System
from raymed.model.tags import SemanticFeatures, ranked_tags
from raymed.sections import GenerationConfig
from raymed.tokens import END, PAD, START


@dataclass(frozen=True)
class Generated:
    """Reports for B images.

    Attributes:
        reading: what the system said of the images (see `Reading`).
        sentences: of each image's report, as word ids.
        p_stop: p(STOP) of each planned sentence, [B, S], at least float32; None where the words
            themselves end the report.
    """

    reading: Reading
    sentences: list[list[list[int]]]
    p_stop: Tensor | None = None

    def lengths(self, threshold: float) -> list[int]:
        """How many of its sentences each report keeps at another stop threshold.

        A sentence's words do not depend on the threshold, so one generation gives the reports at
        every threshold up to its own; and without planned sentences no threshold ends a report.
        """
        written = [len(report) for report in self.sentences]
        if self.p_stop is None:
            return written
        lengths: list[int] = report_lengths(self.p_stop, threshold).tolist()
        assert all(n <= most for n, most in zip(lengths, written, strict=True))
        return lengths

    def reports(self, vocabulary: Vocabulary) -> list["Report"]:
        """The reports in words, one per image."""
        logits = self.reading.tag_logits
        ranked = ranked_tags(logits)
        shares = logits.softmax(dim=1).gather(1, ranked)
        return [
            Report(
                sentences=[vocabulary.decode(ids) for ids in sentences],
                tags=[(vocabulary.tags[i], p) for i, p in zip(ids, probabilities, strict=True)],
            )
            for sentences, ids, probabilities in zip(
                self.sentences, ranked.tolist(), shares.tolist(), strict=True
            )
        ]


@dataclass(frozen=True)
class Report:
    """A generated report.

    Attributes:
        sentences: each its words joined by spaces.
        tags: every tag of the vocabulary with its probability, the likeliest first.
    """

    sentences: list[str]
    tags: list[tuple[str, float]]

    @property
    def text(self) -> str:
        """The whole report, the concatenation of its sentences, as it is scored."""
        return " ".join(sentence for sentence in self.sentences if sentence)


@torch.inference_mode()
def generate(model: System, images: Images, settings: GenerationConfig) -> Generated:
    """Write the reports of B images, or of their features; the model must be in eval mode.

    All is computed in the model's own precision, whoever asks.

    A sentence whose p(STOP) is above the threshold is the last one, as in training, where the
    label STOP stands on the last sentence; without one the report has ``max_sentences``.
    """
    assert not model.training
    with model.precision_context():
        return _generated(model, images, settings)


def _generated(model: System, images: Images, settings: GenerationConfig) -> Generated:
    reading = model.read(images, settings.max_sentences)
    if model.writer is None:
        return Generated(reading, [[] for _ in reading.tag_logits])
    if reading.stop_logits is None:
        context = tuple(each.squeeze(1) for each in reading.context)
        limit = settings.max_sentences * (settings.max_words + 1) - 1
        written = decode_passages(model.writer, context, limit, settings).tolist()
        return Generated(reading, [_sentences(ids)[: settings.max_sentences] for ids in written])
    # Taken once: all that asks later where a report stops is answered from it.
    p_stop = reading.stop_logits.softmax(dim=2)[:, :, 1]
    lengths = report_lengths(p_stop, settings.stop_threshold)
    kept = torch.arange(settings.max_sentences, device=lengths.device) < lengths.unsqueeze(1)
    context = tuple(each[kept] for each in reading.context)
    written = decode_passages(model.writer, context, settings.max_words, settings).tolist()
    passages = iter([ids[: ids.index(PAD)] if PAD in ids else ids for ids in written])
    sentences = [[next(passages) for _ in range(n)] for n in lengths.tolist()]
    return Generated(reading, sentences, p_stop)


@torch.inference_mode()
def add_attention(model: System, generated: Generated) -> Generated:
    """The same reports with each sentence's attention in their reading, where the system has any.

    Systems without planned sentences attend while they write, so they read their reports again.
    """
    count = max(map(len, generated.sentences))
    if count == 0:
        return generated
    longest = max(len(ids) for sentences in generated.sentences for ids in sentences)
    reports = torch.full((len(generated.sentences), count, longest + 2), PAD)
    for image, sentences in enumerate(generated.sentences):
        for number, ids in enumerate(sentences):
            reports[image, number, : len(ids) + 2] = torch.tensor([START, *ids, END])
    passages = model.passages(reports).to(generated.reading.tag_logits.device)
    with model.precision_context():
        return replace(generated, reading=model.add_attention(generated.reading, passages))


def find_semantic_features(model: System) -> SemanticFeatures | None:
    """The part of a system that chooses the M tags it attends to, where it attends to any."""
    return next((part for part in model.modules() if isinstance(part, SemanticFeatures)), None)


@contextmanager
def override_top_tags(model: System, top: int) -> Iterator[None]:
    """Have a system attend to its M = ``top`` likeliest tags; one that attends to none is as ever.

    No weight's shape depends on M, so it may be another than the one the system is trained with.
    """
    features = find_semantic_features(model)
    if features is None:
        yield
        return
    usual, features.top = features.top, top
    try:
        yield
    finally:
        features.top = usual


def report_lengths(stop_probability: Tensor, threshold: float) -> Tensor:
    """Sentences per report [B]: up to the first whose p(STOP) [B, S] is above the threshold."""
    stops = stop_probability > threshold
    first = stops.int().argmax(dim=1) + 1
    return torch.where(stops.any(dim=1), first, stop_probability.shape[1])


class Hypotheses(NamedTuple):
    """The best passage found for each of K contexts.

    Attributes:
        words: word ids [K, T], PAD from END on.
        score: [K], log p(words) / words^length_penalty, with END counted and cut passages as
            they are.
    """

    words: Tensor
    score: Tensor


def decode_passages(
    writer: Decoder, context: Context, limit: int, settings: GenerationConfig
) -> Tensor:
    """The best passage of up to ``limit`` words for each of K contexts: ids [K, T].

    Beam search may lose the greedy passage on its way, so both are run and the better is taken.
    """
    greedy = beam_search(writer, context, limit, settings, width=1)
    if settings.beam_width == 1:
        return greedy.words
    beam = beam_search(writer, context, limit, settings, settings.beam_width)
    better = (beam.score > greedy.score).unsqueeze(1)
    return torch.where(better, beam.words, greedy.words)


def beam_search(
    writer: Decoder, context: Context, limit: int, settings: GenerationConfig, width: int
) -> Hypotheses:
    """Keep the ``width`` best hypotheses of each passage, word by word; all passages at once.

    A finished hypothesis stays among them as it is, and competes with those that go on.
    """
    passages, device = len(context[0]), context[0].device
    context = tuple(each.repeat_interleave(width, dim=0) for each in context)
    state = writer.initial_state(context)
    words = torch.full((passages, width, limit), PAD, device=device)
    # In bfloat16 sums of so many terms could not be told apart.
    dtype = torch.promote_types(context[0].dtype, torch.float32)
    total = torch.full((passages, width), -torch.inf, device=device, dtype=dtype)
    total[:, 0] = 0
    lengths = torch.zeros_like(words[:, :, 0])
    open_ = torch.ones_like(lengths, dtype=torch.bool)
    last = torch.full((passages * width,), START, device=device)
    never = torch.tensor(writer.forbidden_ids, device=device)
    first_row = torch.arange(passages, device=device).unsqueeze(1) * width
    for t in range(limit):
        logits, state = writer.step(last, state, context)
        log_p = logits.to(dtype).log_softmax(dim=1).view(passages, width, logits.shape[1])
        log_p.index_fill_(2, never, -torch.inf)
        if settings.block_ngrams:
            _block_repeats(log_p, words[:, :, :t], settings.block_ngrams)
        log_p.masked_fill_(~open_.unsqueeze(2), -torch.inf)
        log_p[:, :, PAD].masked_fill_(~open_, 0)
        totals = total.unsqueeze(2) + log_p
        lengths = lengths + open_
        scores = totals / lengths.unsqueeze(2) ** settings.length_penalty
        best = scores.flatten(1).topk(width, dim=1).indices
        total = totals.flatten(1).gather(1, best)
        parent, word = best // log_p.shape[2], best % log_p.shape[2]
        words = words.gather(1, parent.unsqueeze(2).expand_as(words))
        open_ = open_.gather(1, parent) & (word != END)
        lengths = lengths.gather(1, parent)
        words[:, :, t] = word.masked_fill(word == END, PAD)
        rows = (first_row + parent).flatten()
        state, last = tuple(each[rows] for each in state), word.flatten()
        if not open_.any():
            break
    score, best = (total / lengths**settings.length_penalty).max(dim=1)
    return Hypotheses(words[torch.arange(passages, device=device), best], score)


def _block_repeats(log_p: Tensor, words: Tensor, n: int) -> None:
    """Forbid, in log_p [K, W, V], every word that would end an n-gram that words [K, W, t] hold."""
    t = words.shape[2]
    if t < n:
        return
    grams = words.unfold(2, n, 1)
    repeated = (grams[..., : n - 1] == words[:, :, None, t - n + 1 :]).all(dim=3)
    forbidden = torch.zeros_like(log_p, dtype=torch.int32)
    forbidden.scatter_add_(2, grams[..., n - 1], repeated.int())
    log_p.masked_fill_(forbidden > 0, -torch.inf)


def _sentences(ids: list[int]) -> list[list[int]]:
    """A report's words, START between its sentences, PAD after them -> its sentences."""
    sentences: list[list[int]] = [[]]
    for word in ids:
        if word == PAD:
            break
        if word == START:
            sentences.append([])
        else:
            sentences[-1].append(word)
    return sentences
