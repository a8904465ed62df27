"""The transformer in numpy, one word, region and head after the other (Vaswani et al. 2017)."""

import math

import numpy as np

from tests.support.by_hand import (
    DECODER_DROPOUT,
    Answer,
    Image,
    Passage,
    Weights,
    classify,
    masks,
)
from tests.support.single_lstm_by_hand import one_sequence

LAYERS, HEADS = 2, 2

Array = np.ndarray


def transformer(w: Weights, image: Image) -> Answer:
    tag_logits, _, _ = classify(w, image)
    *inputs, last = one_sequence(image.report)
    net = Network(w)
    seed = image.seed
    x = np.maximum(net.linear("region_encoder.w_v", np.array(image.regions)), 0)
    x = dropped(x, None if seed is None else seed + 3)
    for n in range(LAYERS):
        site = None if seed is None else seed + 4 + 2 * n
        name = f"region_encoder.layers.{n}"
        normal = net.norm(f"{name}.norm_1", x)
        x = x + dropped(net.attend(f"{name}.attention", normal, normal, causal=False), site)
        fed = net.feed(f"{name}.feed_forward", net.norm(f"{name}.norm_2", x))
        x = x + dropped(fed, None if site is None else site + 1)
    regions = net.norm("region_encoder.norm", x)

    passage = Passage(seed)
    read = [passage.read(t, w["writer.embedding.weight"][word]) for t, word in enumerate(inputs)]
    width = len(read[0])
    x = math.sqrt(width) * np.array(read)
    for t in range(len(inputs)):
        for i in range(width):
            angle = t / 10000 ** (i // 2 * 2 / width)
            x[t, i] += math.cos(angle) if i % 2 else math.sin(angle)
    own = passage.own_seed
    x = dropped(x, None if own is None else own + 2)
    for n in range(LAYERS):
        site = None if own is None else own + 3 + 3 * n
        name = f"writer.layers.{n}"
        normal = net.norm(f"{name}.norm_1", x)
        x = x + dropped(net.attend(f"{name}.own", normal, normal, causal=True), site)
        crossed = net.attend(f"{name}.cross", net.norm(f"{name}.norm_2", x), regions, causal=False)
        x = x + dropped(crossed, None if site is None else site + 1)
        fed = net.feed(f"{name}.feed_forward", net.norm(f"{name}.norm_3", x))
        x = x + dropped(fed, None if site is None else site + 2)
    words = net.linear("writer.w_out", net.norm("writer.norm", x)).tolist()
    return Answer(tag_logits, [], [], [], [], [], words, [*inputs[1:], last], 0.0, image)


def dropped(x: Array, seed: int | None) -> Array:
    return x if seed is None else x * np.array(masks(seed, *x.shape, DECODER_DROPOUT))


class Network:
    """The layers, by the names of their weights."""

    def __init__(self, w: Weights) -> None:
        self.w = w

    def linear(self, name: str, x: Array) -> Array:
        y = x @ np.array(self.w[f"{name}.weight"]).T
        return y + np.array(self.w[f"{name}.bias"]) if f"{name}.bias" in self.w else y

    def norm(self, name: str, x: Array) -> Array:
        mean, variance = x.mean(axis=1, keepdims=True), x.var(axis=1, keepdims=True)
        scaled = (x - mean) / np.sqrt(variance + 1e-5)
        return scaled * np.array(self.w[f"{name}.weight"]) + np.array(self.w[f"{name}.bias"])

    def feed(self, name: str, x: Array) -> Array:
        return self.linear(f"{name}.2", np.maximum(self.linear(f"{name}.0", x), 0))

    def attend(self, name: str, x: Array, y: Array, causal: bool) -> Array:
        """Each row of x to the rows of y, or to those of them up to its own."""
        q, k, v = (self.linear(f"{name}.w_{n}", z) for n, z in (("q", x), ("k", y), ("v", y)))
        each = q.shape[1] // HEADS
        out = np.zeros_like(q)
        for t in range(len(q)):
            seen = t + 1 if causal else len(k)
            for head in range(HEADS):
                part = slice(head * each, (head + 1) * each)
                shares = np.exp(k[:seen, part] @ q[t, part] / math.sqrt(each))
                out[t, part] = shares @ v[:seen, part] / shares.sum()
        return self.linear(f"{name}.w_o", out)
