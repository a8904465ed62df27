"""What the systems' equations are computed with in plain loops over Python floats."""

import math
from dataclasses import dataclass
from functools import cache

from raymed.sections import LossConfig
from tests.support.splitmix import draws

TAGS, WORDS, TOP, DROPOUT = 5, 9, 3, 0.3
EMBEDDING_DROPOUT, DECODER_DROPOUT = 0.2, 0.25
LAMBDAS = LossConfig(tag=0.7, sent=1.3, word=0.4, attention=0.9)

Vector = list[float]
Matrix = list[Vector]
Weights = dict[str, list]


@cache
def masks(seed: int, rows: int, width: int, rate: float) -> Matrix:
    """What each unit of x [rows, width] is multiplied by: 0 if it is dropped, or 1 / (1 - rate)."""
    flat = [0.0 if draw < rate else 1 / (1 - rate) for draw in draws(seed, rows * width)]
    return [flat[row * width : (row + 1) * width] for row in range(rows)]


@cache
def whole_draw(seed: int, number: int) -> int:
    """One draw of a seed as a whole number, which is the seed of something else."""
    return int(draws(seed, number + 1)[number] * 2**53)


@dataclass
class Passage:
    """The dropout of a passage's words.

    Attributes:
        seed: of its image; None without dropout.
        number: of the passage in its report.
    """

    seed: int | None
    number: int = 0

    @property
    def own_seed(self) -> int | None:
        return None if self.seed is None else whole_draw(self.seed + 2, self.number)

    def read(self, t: int, x: Vector) -> Vector:
        """The embedding of the word at t."""
        if self.own_seed is None:
            return x
        return times(x, masks(self.own_seed, t + 1, len(x), EMBEDDING_DROPOUT)[t])

    def written(self, t: int, x: Vector) -> Vector:
        """The input of the output layer at t."""
        if self.own_seed is None:
            return x
        return times(x, masks(whole_draw(self.own_seed + 1, t), 1, len(x), DECODER_DROPOUT)[0])


def linear(w: Matrix, x: Vector, bias: Vector | None = None) -> Vector:
    return [
        sum(w_ij * x_j for w_ij, x_j in zip(row, x, strict=True)) + (bias[i] if bias else 0.0)
        for i, row in enumerate(w)
    ]


def plus(x: Vector, y: Vector) -> Vector:
    return [a + b for a, b in zip(x, y, strict=True)]


def times(x: Vector, y: Vector) -> Vector:
    return [a * b for a, b in zip(x, y, strict=True)]


def tanh(x: Vector) -> Vector:
    return [math.tanh(a) for a in x]


def softmax(x: Vector) -> Vector:
    total = sum(math.exp(a) for a in x)
    return [math.exp(a) / total for a in x]


def sigmoid(a: float) -> float:
    return 1 / (1 + math.exp(-a))


def mixed(shares: Vector, xs: Matrix) -> Vector:
    """sum_n shares_n x_n"""
    return [sum(shares[n] * x[d] for n, x in enumerate(xs)) for d in range(len(xs[0]))]


CELL = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def lstm(
    w_x: Matrix, w_h: Matrix, b_x: Vector, b_h: Vector, x: Vector, h: Vector, c: Vector
) -> tuple[Vector, Vector]:
    """i, f, o = sigmoid(W x + U h + b), g = tanh(...); c' = f c + i g; h' = o tanh(c')."""
    gates = plus(linear(w_x, x, b_x), linear(w_h, h, b_h))
    size = len(h)
    i, f, g, o = (gates[k * size : (k + 1) * size] for k in range(4))
    c = [sigmoid(f[k]) * c[k] + sigmoid(i[k]) * math.tanh(g[k]) for k in range(size)]
    return [sigmoid(o[k]) * math.tanh(c[k]) for k in range(size)], c


def attend(w: Weights, name: str, xs: Matrix, h: Vector) -> tuple[Vector, Vector]:
    """Eqs. 2 and 3 of Jing et al., with the weights of the attention of that name."""
    inner, w_h, w_att = (w[f"{name}.{part}.weight"] for part in ("w", "w_h", "w_att"))
    scores = [linear(w_att, tanh(plus(linear(inner, x), linear(w_h, h))))[0] for x in xs]
    alpha = softmax(scores)
    return mixed(alpha, xs), alpha


def uncovered(attention: Matrix) -> float:
    """sum_n (1 - sum_s attention_s,n)^2"""
    return sum((1 - sum(row[n] for row in attention)) ** 2 for n in range(len(attention[0])))


@dataclass
class Image:
    """One training example: what goes into the equations.

    Attributes:
        feature_map: [D, h, w].
        report: START, words and END of each sentence.
        stops: of each sentence.
        tags: ids.
        kept: the units that dropout keeps, for both hidden layers of the classifier; None: all
            of them, unscaled.
        seed: of all other dropout; None without dropout.
    """

    feature_map: list[Matrix]
    report: list[list[int]]
    stops: list[int]
    tags: list[int]
    kept: list[list[bool]] | None = None
    seed: int | None = None

    @property
    def regions(self) -> Matrix:
        height, width = len(self.feature_map[0]), len(self.feature_map[0][0])
        return [
            [channel[y][x] for channel in self.feature_map]
            for y in range(height)
            for x in range(width)
        ]


@dataclass
class Answer:
    """What the equations give for one image; a part that its system has not is empty."""

    tag_logits: Vector
    tag_ids: list[int]
    topics: Matrix
    stops: Matrix
    alpha: Matrix
    beta: Matrix
    words: Matrix
    targets: list[int]
    attention: float
    image: Image

    @property
    def tag(self) -> float:
        p = softmax(self.tag_logits)
        return -sum(math.log(p[i]) / len(self.image.tags) for i in self.image.tags)

    @property
    def sent(self) -> float:
        labelled = zip(self.stops, self.image.stops, strict=True) if self.stops else ()
        return -sum(math.log(softmax(z)[stop]) for z, stop in labelled)

    @property
    def word(self) -> float:
        pairs = zip(self.words, self.targets, strict=True)
        return -sum(math.log(softmax(z)[target]) for z, target in pairs)

    @property
    def total(self) -> float:
        names = ("tag", "sent", "word", "attention")
        return sum(getattr(LAMBDAS, name) * getattr(self, name) for name in names)


def adaptive_max(channel: Matrix, out: int) -> Vector:
    """The largest value in each of out x out cells that cover the channel."""

    def span(i: int, size: int) -> range:
        return range(i * size // out, -(-(i + 1) * size // out))

    return [
        max(channel[y][x] for y in span(i, len(channel)) for x in span(j, len(channel[0])))
        for i in range(out)
        for j in range(out)
    ]


def classify(w: Weights, image: Image) -> tuple[Vector, Vector, list[int]]:
    """Eq. 1: tag logits, the last hidden layer, and the M likeliest tags, best first."""
    cells = len(w["encoder.hidden.0.weight"][0]) // len(image.feature_map)
    x = [a for channel in image.feature_map for a in adaptive_max(channel, math.isqrt(cells))]
    for layer in range(2):
        name = f"encoder.hidden.{layer}"
        x = [max(a, 0.0) for a in linear(w[f"{name}.weight"], x, w[f"{name}.bias"])]
        if image.kept:
            kept = zip(x, image.kept[layer], strict=True)
            x = [a / (1 - DROPOUT) if keep else 0.0 for a, keep in kept]
    logits = linear(w["tag_classifier.output.weight"], x, w["tag_classifier.output.bias"])
    return logits, x, sorted(range(TAGS), key=lambda i: -logits[i])[:TOP]


def words_after(w: Weights, first: Vector, words: list[int], passage: Passage) -> Matrix:
    """Eq. 7 of Jing et al., or eqs. 10 to 12 of Vinyals et al.: what is said after each word."""
    cell = [w[f"writer.lstm.{n}_l0"] for n in CELL]
    size = len(cell[1][0])
    h, c = lstm(*cell, first, [0.0] * size, [0.0] * size)
    logits = []
    for t, word in enumerate(words):
        h, c = lstm(*cell, passage.read(t, w["writer.embedding.weight"][word]), h, c)
        logits.append(linear(w["writer.w_out.weight"], passage.written(t, h)))
    return logits


def tags_alone(w: Weights, image: Image) -> Answer:
    """``vgg19_tags``."""
    logits, _, _ = classify(w, image)
    return Answer(logits, [], [], [], [], [], [], [], 0.0, image)
