"""Reports sampled from a model's own distribution, beside its greedy ones.

Each random decision about an image is made by that image's own seed, so that neither the other
images of a batch nor the number of workers alters its report. Nothing here waits for the device.
"""

import torch
from torch import Tensor

from raymed.generation import passage_limit, report_lengths
from raymed.image_tensors import Images
from raymed.model.dropout import RANDOM_BITS, uniform_bits
from raymed.model.system import Context, Decoder, System
from raymed.sections import GenerationConfig
from raymed.tokens import END, PAD, START

SAMPLED, GREEDY = range(2)
"""The places of the two reports in what `roll_out` returns."""
_STREAM = 2
"""Added to an image's seed: dropout draws from the seed itself and from the next one."""


@torch.no_grad()
def roll_out(model: System, images: Images, seeds: Tensor, settings: GenerationConfig) -> Tensor:
    """A sampled and a greedy report of each of B images.

    The model is read without dropout, as in generation. Sampled words follow the model's softmax
    over the words that generation may choose, and each sentence is the last one with probability
    p(STOP); a report has one sentence at least. The greedy report is the one that generation
    writes with ``beam_width`` 1 and ``block_ngrams`` 0.

    Args:
        model: A system that writes reports.
        images: uint8 [B, H, W], or their features.
        seeds: int64 [B], which determine the sampled reports.
        settings: The stop threshold of the greedy report, and the limits of both.

    Returns:
        Word ids [2, B, P, T] on the model's device: sampled, then greedy. Of each of P passages,
        the words and END (none if it was truncated), then PAD; only PAD beyond a report's end.
    """
    with model.precision_context():
        reading = model.read(images, settings.max_sentences)
        assert model.writer is not None
        size, passages = reading.context[0].shape[:2]
        limit = passage_limit(reading, settings)
        uniforms = _uniforms(seeds, passages * (1 + limit)).view(size, passages, 1 + limit)
        if reading.stop_logits is None:
            kept = torch.ones(2 * size, 1, dtype=torch.bool, device=seeds.device)
        else:
            p_stop = reading.stop_logits.softmax(dim=2)[:, :, 1]
            thresholds = (uniforms[:, :, 0], settings.stop_threshold)
            lengths = torch.cat([report_lengths(p_stop, threshold) for threshold in thresholds])
            kept = torch.arange(passages, device=lengths.device) < lengths.unsqueeze(1)
        kept = kept.flatten()
        rows = _rows_to_decode(kept)
        position = rows % (size * passages)
        words = torch.full((len(kept), limit), PAD, device=seeds.device)
        words[rows] = _decode(
            model.writer,
            tuple(each.flatten(0, 1)[position] for each in reading.context),
            uniforms[:, :, 1:].flatten(0, 1)[position],
            rows < size * passages,
        )
    return words.masked_fill(~kept.unsqueeze(1), PAD).view(2, size, passages, limit)


def forbid(decoder: Decoder, logits: Tensor) -> Tensor:
    """The logits [X, V], with -inf for the words that generation never chooses."""
    mask = torch.zeros(logits.shape[1], device=logits.device, dtype=logits.dtype)
    for word in decoder.forbidden_ids:
        mask[word] = -torch.inf
    return logits + mask


def _uniforms(seeds: Tensor, count: int) -> Tensor:
    """Uniform draws from [0, 1) for each seed, float64 [B, count]."""
    return uniform_bits(seeds + _STREAM, count).double() * 2.0**-RANDOM_BITS


def _rows_to_decode(kept: Tensor) -> Tensor:
    """The positions that are True; all of them on a GPU, which the host would have to wait for."""
    if kept.device.type == "cpu":
        return kept.nonzero().squeeze(1)
    return torch.arange(len(kept), device=kept.device)


def _decode(decoder: Decoder, context: Context, uniforms: Tensor, sampled: Tensor) -> Tensor:
    """Decode K passages, each by sampling or greedily.

    A word is sampled by inverting the cumulative distribution at a uniform draw, in float64,
    because a sum of a thousand probabilities in float32 would favour some words over others.

    Args:
        decoder: The system's decoder.
        context: What the passages are decoded from, tensors [K, ...].
        uniforms: A draw for each word of each passage, [K, T].
        sampled: bool [K], False for greedy decoding.

    Returns:
        Word ids [K, T], PAD after END.
    """
    state = decoder.initial_state(context)
    words = torch.full(uniforms.shape, PAD, device=uniforms.device)
    last = torch.full_like(words[:, 0], START)
    unfinished = torch.ones_like(sampled)
    for t, draw in enumerate(uniforms.unsqueeze(2).unbind(dim=1)):
        logits, state = decoder.step(last, state, context)
        p = forbid(decoder, logits).double().softmax(dim=1)
        cumulative = p.cumsum(dim=1)
        drawn = torch.searchsorted(cumulative, draw * cumulative[:, -1:], right=True).squeeze(1)
        # Rounding may put a draw just below 1 beyond the last word.
        drawn = drawn.clamp(max=p.shape[1] - 1)
        last = torch.where(sampled, drawn, p.argmax(dim=1))
        words[:, t] = last.masked_fill(~unfinished, PAD)
        unfinished = unfinished & (last != END)
        # A GPU runs to the end, because the host would have to wait to learn that it may stop.
        if unfinished.device.type == "cpu" and not unfinished.any():
            break
    return words
