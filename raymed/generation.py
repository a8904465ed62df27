"""Generating reports: topics first, then all passages of all images in parallel, by beam search.

A passage is a sentence where the system plans sentences, or else the whole report. What is decoded
from a topic does not depend on the stop threshold, and the LSTM's state is kept, so that no prefix
is ever computed twice.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from raymed.data.vocabulary import Vocabulary
from raymed.image_tensors import Images
from raymed.model.system import Context, Decoder, Reading, System
from raymed.model.tags import SemanticFeatures, ranked_tags
from raymed.sections import GenerationConfig
from raymed.tokens import END, PAD, START


@dataclass(frozen=True)
class Generated:
    """Generated reports of B images.

    Attributes:
        reading: The system's `Reading` of the images.
        sentences: Each report's sentences, as word ids.
        p_stop: p(STOP) of each planned sentence, [B, S], at least float32; None where the words
            themselves end the report.
    """

    reading: Reading
    sentences: list[list[list[int]]]
    p_stop: Tensor | None = None

    def lengths(self, threshold: float) -> list[int]:
        """How many of its sentences each report keeps at a lower stop threshold.

        A sentence's words do not depend on the threshold, so that one generation gives the reports
        at every threshold up to its own. Without planned sentences the threshold has no effect.
        """
        generated = [len(report) for report in self.sentences]
        if self.p_stop is None:
            return generated
        lengths: list[int] = report_lengths(self.p_stop, threshold).tolist()
        assert all(n <= most for n, most in zip(lengths, generated, strict=True))
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
        sentences: Each sentence's words, joined by spaces.
        tags: Every tag of the vocabulary with its probability, most probable first.
    """

    sentences: list[str]
    tags: list[tuple[str, float]]

    @property
    def text(self) -> str:
        """The whole report as it is scored: its sentences, joined by spaces."""
        return " ".join(sentence for sentence in self.sentences if sentence)


@torch.inference_mode()
def generate(model: System, images: Images, settings: GenerationConfig) -> Generated:
    """Generate the reports of B images, given as pixels or features, in the model's precision.

    A sentence whose p(STOP) exceeds the threshold is the last one, as in training, where the last
    sentence has the label STOP; without one the report has ``max_sentences`` sentences.

    Args:
        model: The system, in eval mode.
        images: uint8 [B, H, W], or their features.
        settings: The generation section of the configuration.
    """
    assert not model.training
    with model.precision_context():
        return _generated(model, images, settings)


def _generated(model: System, images: Images, settings: GenerationConfig) -> Generated:
    reading = model.read(images, settings.max_sentences)
    if model.writer is None:
        return Generated(reading, [[] for _ in reading.tag_logits])
    limit = passage_limit(reading, settings)
    if reading.stop_logits is None:
        context = tuple(each.squeeze(1) for each in reading.context)
        decoded = decode_passages(model.writer, context, limit, settings).tolist()
        reports = [split_sentences(ids)[: settings.max_sentences] for ids in decoded]
        return Generated(reading, reports)
    # Computed once: every later question of where a report stops is answered from it.
    p_stop = reading.stop_logits.softmax(dim=2)[:, :, 1]
    lengths = report_lengths(p_stop, settings.stop_threshold)
    kept = torch.arange(settings.max_sentences, device=lengths.device) < lengths.unsqueeze(1)
    context = tuple(each[kept] for each in reading.context)
    decoded = decode_passages(model.writer, context, limit, settings).tolist()
    passages = iter([ids[: ids.index(PAD)] if PAD in ids else ids for ids in decoded])
    sentences = [[next(passages) for _ in range(n)] for n in lengths.tolist()]
    return Generated(reading, sentences, p_stop)


@torch.inference_mode()
def add_attention(model: System, generated: Generated) -> Generated:
    """The same reports, with each sentence's attention in their reading if the system has any.

    Systems without planned sentences attend at each word, so they run over their reports again.
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
    """The module that selects the M tags a system attends to; None if it attends to none."""
    return next((part for part in model.modules() if isinstance(part, SemanticFeatures)), None)


@contextmanager
def override_top_tags(model: System, top: int) -> Iterator[None]:
    """Have a system attend to its M = ``top`` most probable tags inside the block.

    No weight's shape depends on M, so that it may differ from the one in training. A system that
    attends to no tags is unaffected.
    """
    features = find_semantic_features(model)
    if features is None:
        yield
        return
    original, features.top = features.top, top
    try:
        yield
    finally:
        features.top = original


def passage_limit(reading: Reading, settings: GenerationConfig) -> int:
    """How many words a passage may have; a whole report's include the START of each sentence."""
    if reading.stop_logits is not None:
        return settings.max_words
    return settings.max_sentences * (settings.max_words + 1) - 1


def report_lengths(stop_probability: Tensor, threshold: float | Tensor) -> Tensor:
    """Sentences per report [B]: up to the first whose p(STOP) [B, S] exceeds the threshold.

    The threshold may be a tensor [B, S], with one for each sentence.
    """
    stops = stop_probability > threshold
    first = stops.int().argmax(dim=1) + 1
    return torch.where(stops.any(dim=1), first, stop_probability.shape[1])


class Hypotheses(NamedTuple):
    """The best passage found for each of K contexts.

    Attributes:
        words: Word ids [K, T], PAD from END on.
        score: [K], log p(words) / words^length_penalty. END counts as a word; truncated passages
            have none.
    """

    words: Tensor
    score: Tensor


def decode_passages(
    decoder: Decoder, context: Context, limit: int, settings: GenerationConfig
) -> Tensor:
    """The best passage of up to ``limit`` words for each of K contexts: ids [K, T].

    Beam search may drop the greedy passage on its way, so both are run and the better is kept.
    """
    greedy = beam_search(decoder, context, limit, settings, width=1)
    if settings.beam_width == 1:
        return greedy.words
    beam = beam_search(decoder, context, limit, settings, settings.beam_width)
    better = (beam.score > greedy.score).unsqueeze(1)
    return torch.where(better, beam.words, greedy.words)


def beam_search(
    decoder: Decoder, context: Context, limit: int, settings: GenerationConfig, width: int
) -> Hypotheses:
    """Extend the ``width`` best hypotheses of each passage word by word, all passages at once.

    A finished hypothesis stays among them unchanged and competes with the unfinished ones.
    """
    passages, device = len(context[0]), context[0].device
    context = tuple(each.repeat_interleave(width, dim=0) for each in context)
    state = decoder.initial_state(context)
    words = torch.full((passages, width, limit), PAD, device=device)
    # In bfloat16, sums of so many terms would be indistinguishable.
    dtype = torch.promote_types(context[0].dtype, torch.float32)
    total = torch.full((passages, width), -torch.inf, device=device, dtype=dtype)
    total[:, 0] = 0
    lengths = torch.zeros_like(words[:, :, 0])
    unfinished = torch.ones_like(lengths, dtype=torch.bool)
    last = torch.full((passages * width,), START, device=device)
    forbidden = torch.tensor(decoder.forbidden_ids, device=device)
    first_row = torch.arange(passages, device=device).unsqueeze(1) * width
    for t in range(limit):
        logits, state = decoder.step(last, state, context)
        log_p = logits.to(dtype).log_softmax(dim=1).view(passages, width, logits.shape[1])
        log_p.index_fill_(2, forbidden, -torch.inf)
        if settings.block_ngrams:
            _block_repeats(log_p, words[:, :, :t], settings.block_ngrams)
        log_p.masked_fill_(~unfinished.unsqueeze(2), -torch.inf)
        log_p[:, :, PAD].masked_fill_(~unfinished, 0)
        totals = total.unsqueeze(2) + log_p
        lengths = lengths + unfinished
        scores = totals / lengths.unsqueeze(2) ** settings.length_penalty
        best = scores.flatten(1).topk(width, dim=1).indices
        total = totals.flatten(1).gather(1, best)
        parent, word = best // log_p.shape[2], best % log_p.shape[2]
        words = words.gather(1, parent.unsqueeze(2).expand_as(words))
        unfinished = unfinished.gather(1, parent) & (word != END)
        lengths = lengths.gather(1, parent)
        words[:, :, t] = word.masked_fill(word == END, PAD)
        rows = (first_row + parent).flatten()
        state, last = tuple(each[rows] for each in state), word.flatten()
        if not unfinished.any():
            break
    score, best = (total / lengths**settings.length_penalty).max(dim=1)
    return Hypotheses(words[torch.arange(passages, device=device), best], score)


def _block_repeats(log_p: Tensor, words: Tensor, n: int) -> None:
    """Forbid, in log_p [K, W, V], words that would complete an n-gram of words [K, W, t]."""
    t = words.shape[2]
    if t < n:
        return
    grams = words.unfold(2, n, 1)
    repeated = (grams[..., : n - 1] == words[:, :, None, t - n + 1 :]).all(dim=3)
    forbidden = torch.zeros_like(log_p, dtype=torch.int32)
    forbidden.scatter_add_(2, grams[..., n - 1], repeated.int())
    log_p.masked_fill_(forbidden > 0, -torch.inf)


def split_sentences(ids: list[int]) -> list[list[int]]:
    """Split a passage's word ids into sentences: START separates them, PAD follows them."""
    sentences: list[list[int]] = [[]]
    for word in ids:
        if word == PAD:
            break
        if word == START:
            sentences.append([])
        else:
            sentences[-1].append(word)
    return sentences
