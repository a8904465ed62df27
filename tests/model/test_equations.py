"""Equations 1 to 9 of the paper, and their gradients, against plain loops over Python floats."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raymed.config import LossConfig, ModelConfig
from raymed.data.batches import Batch
from raymed.model import encoder
from raymed.model.hierarchical import HierarchicalModel
from raymed.tokens import END, PAD, START, UNKNOWN
from raymed.training.loss import Terms, terms

TAGS, WORDS, TOP, DROPOUT = 5, 9, 3, 0.3
LAMBDAS = LossConfig(tag=0.7, sent=1.3, word=0.4, attention=0.9)

Vector = list[float]
Matrix = list[Vector]
Weights = dict[str, list]


def linear(w: Matrix, x: Vector, bias: Vector | None = None) -> Vector:
    return [
        sum(w_ij * x_j for w_ij, x_j in zip(row, x, strict=True)) + (bias[i] if bias else 0.0)
        for i, row in enumerate(w)
    ]


def plus(x: Vector, y: Vector) -> Vector:
    return [a + b for a, b in zip(x, y, strict=True)]


def tanh(x: Vector) -> Vector:
    return [math.tanh(a) for a in x]


def softmax(x: Vector) -> Vector:
    total = sum(math.exp(a) for a in x)
    return [math.exp(a) / total for a in x]


def sigmoid(a: float) -> float:
    return 1 / (1 + math.exp(-a))


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


def attend(w: Matrix, w_h: Matrix, w_att: Matrix, xs: Matrix, h: Vector) -> tuple[Vector, Vector]:
    """Eqs. 2 and 3."""
    scores = [linear(w_att, tanh(plus(linear(w, x), linear(w_h, h))))[0] for x in xs]
    alpha = softmax(scores)
    attended = [sum(alpha[n] * x[d] for n, x in enumerate(xs)) for d in range(len(xs[0]))]
    return attended, alpha


def adaptive_max(channel: Matrix, out: int) -> Vector:
    """The largest value in each of out x out cells that cover the channel."""

    def span(i: int, size: int) -> range:
        return range(i * size // out, -(-(i + 1) * size // out))

    return [
        max(channel[y][x] for y in span(i, len(channel)) for x in span(j, len(channel[0])))
        for i in range(out)
        for j in range(out)
    ]


@dataclass
class Image:
    """One training example: what goes into the equations."""

    feature_map: list[Matrix]
    report: list[list[int]]
    stops: list[int]
    tags: list[int]
    kept: list[list[bool]]
    """Units that dropout keeps, for both hidden layers of the classifier."""


@dataclass
class Answer:
    tag_logits: Vector
    tag_ids: list[int]
    topics: Matrix
    stops: Matrix
    alpha: Matrix
    beta: Matrix
    words: Matrix
    tag: float
    sent: float
    word: float
    attention: float

    @property
    def total(self) -> float:
        return (
            LAMBDAS.tag * self.tag
            + LAMBDAS.sent * self.sent
            + LAMBDAS.word * self.word
            + LAMBDAS.attention * self.attention
        )


def by_hand(w: Weights, image: Image) -> Answer:
    # Eq. 1
    cells = len(w["tag_classifier.hidden.0.weight"][0]) // len(image.feature_map)
    x = [a for channel in image.feature_map for a in adaptive_max(channel, math.isqrt(cells))]
    for layer in range(2):
        name = f"tag_classifier.hidden.{layer}"
        x = [max(a, 0.0) for a in linear(w[f"{name}.weight"], x, w[f"{name}.bias"])]
        kept = zip(x, image.kept[layer], strict=True)
        x = [a / (1 - DROPOUT) if keep else 0.0 for a, keep in kept]
    tag_logits = linear(w["tag_classifier.output.weight"], x, w["tag_classifier.output.bias"])
    tag_p = softmax(tag_logits)
    tag_ids = sorted(range(TAGS), key=lambda i: -tag_p[i])[:TOP]

    height, width = len(image.feature_map[0]), len(image.feature_map[0][0])
    v = [
        [channel[y][x] for channel in image.feature_map]
        for y in range(height)
        for x in range(width)
    ]
    a = [w["semantic_features.embedding.weight"][i] for i in tag_ids]
    size = len(w["co_attention.w_fc.weight"])
    h, c = [0.0] * size, [0.0] * size
    topics, stops, alphas, betas, words = [], [], [], [], []
    for sentence in image.report:
        names = ("w.weight", "w_h.weight", "w_att.weight")
        v_att, alpha = attend(*(w[f"co_attention.visual.{n}"] for n in names), v, h)
        a_att, beta = attend(*(w[f"co_attention.semantic.{n}"] for n in names), a, h)
        ctx = linear(w["co_attention.w_fc.weight"], v_att + a_att)  # eq. 4
        cell = (w[f"sentence_lstm.cell.{n}"] for n in CELL)
        h_previous = h
        h, c = lstm(*cell, ctx, h, c)
        topic = tanh(  # eq. 5
            plus(
                linear(w["sentence_lstm.w_t_h.weight"], h),
                linear(w["sentence_lstm.w_t_ctx.weight"], ctx),
            )
        )
        stop = linear(  # eq. 6
            w["sentence_lstm.w_stop.weight"],
            tanh(
                plus(
                    linear(w["sentence_lstm.w_stop_previous.weight"], h_previous),
                    linear(w["sentence_lstm.w_stop_current.weight"], h),
                )
            ),
        )
        topics.append(topic)
        stops.append(stop)
        alphas.append(alpha)
        betas.append(beta)
        words.append(word_logits(w, topic, sentence))

    # Eq. 8
    tag = -sum(math.log(tag_p[i]) / len(image.tags) for i in image.tags)
    sent = -sum(math.log(softmax(z)[s]) for z, s in zip(stops, image.stops, strict=True))
    word = -sum(
        math.log(softmax(z)[target])
        for sentence, logits in zip(image.report, words, strict=True)
        for z, target in zip(logits, sentence[1:], strict=True)
    )
    # Eq. 9
    attention = sum((1 - sum(row[n] for row in alphas)) ** 2 for n in range(len(v)))
    attention += sum((1 - sum(row[m] for row in betas)) ** 2 for m in range(TOP))
    flat = [logits for sentence in words for logits in sentence]
    return Answer(
        tag_logits, tag_ids, topics, stops, alphas, betas, flat, tag, sent, word, attention
    )


def word_logits(w: Weights, topic: Vector, sentence: list[int]) -> Matrix:
    """Eq. 7: the logits of every word of a sentence after START."""
    cell = [w[f"word_lstm.lstm.{n}_l0"] for n in CELL]
    size = len(cell[1][0])
    h, c = lstm(*cell, topic, [0.0] * size, [0.0] * size)
    logits = []
    for word in sentence[:-1]:
        h, c = lstm(*cell, w["word_lstm.embedding.weight"][word], h, c)
        logits.append(linear(w["word_lstm.w_out.weight"], h))
    return logits


def draws(seed: int, count: int) -> Vector:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)).tolist()


class Fixed(nn.Module):
    """An encoder whose feature map is a parameter, to take its gradient."""

    def __init__(self, feature_map: Tensor) -> None:
        super().__init__()
        self.feature_map = nn.Parameter(feature_map)

    def forward(self, _: Tensor) -> Tensor:
        return self.feature_map


@dataclass
class Case:
    model: HierarchicalModel
    batch: Batch

    def weights(self) -> Weights:
        return {name: p.detach().tolist() for name, p in self.model.named_parameters()}

    def images(self, w: Weights) -> list[Image]:
        """The batch as plain lists without padding."""
        widths = [layer.out_features for layer in self.model.tag_classifier.hidden]
        return [
            Image(
                feature_map=w["encoder.feature_map"][i],
                report=[[t for t in ids if t != PAD] for ids in report if ids[0] == START],
                stops=[stop for stop in self.batch.stops[i].tolist() if stop >= 0],
                tags=self.batch.tags[i].nonzero().flatten().tolist(),
                kept=[
                    [draw >= DROPOUT for draw in draws(seed + layer, width)]
                    for layer, width in enumerate(widths)
                ],
            )
            for i, (report, seed) in enumerate(
                zip(self.batch.reports.tolist(), self.batch.seeds.tolist(), strict=True)
            )
        ]

    def answers(self, w: Weights) -> list[Answer]:
        return [by_hand(w, image) for image in self.images(w)]

    def terms(self) -> Terms:
        outputs = self.model(self.batch.images, self.batch.reports, self.batch.seeds)
        return terms(outputs, self.batch)


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> Case:
    """Three images: a whole report; one cut in its words; one cut in its sentences, untagged."""
    monkeypatch.setattr(encoder, "SMALL_WIDTHS", (8, 8, 8, 8))
    torch.manual_seed(1)
    config = ModelConfig(
        encoder="small", hidden_size=6, embedding_size=5, top_tags=TOP, dropout=DROPOUT
    )
    model = HierarchicalModel(config, TAGS, WORDS, pretrained=False).double()
    with torch.no_grad():
        for p in model.parameters():
            # Wide enough that attention, gates and stops are far from uniform.
            p.normal_(std=1.5 / p.shape[-1] ** 0.5)
    reports = torch.full((3, 3, 5), PAD)
    for (image, sentence), ids in {
        (0, 0): [START, 4, 5, 6, END],
        (0, 1): [START, 7, END],
        (0, 2): [START, UNKNOWN, 8, END],
        (1, 0): [START, 5, 6, 7],
        (2, 0): [START, 8, 4, END],
        (2, 1): [START, END],
    }.items():
        reports[image, sentence, : len(ids)] = torch.tensor(ids)
    images = torch.randint(0, 256, (3, 24, 24)).to(torch.uint8)
    batch = Batch(
        images=images,
        reports=reports,
        stops=torch.tensor([[0, 0, 1], [1, -1, -1], [0, 0, -1]]),
        tags=torch.tensor([[1, 0, 1, 0, 1], [0, 1, 0, 0, 0], [0] * 5], dtype=torch.float64),
        weights=torch.full((3,), 1 / 3),
        seeds=torch.tensor([11, 2**61, 5]),
    )
    model.encoder = Fixed(torch.rand(3, 8, 3, 3, dtype=torch.float64))  # type: ignore[assignment]
    return Case(model.train(), batch)


def test_forward_pass(case: Case) -> None:
    answers = case.answers(case.weights())
    outputs = case.model(case.batch.images, case.batch.reports, case.batch.seeds)
    topics = outputs.topics
    for i, answer in enumerate(answers):
        real = len(answer.topics)
        assert topics.tag_ids[i].tolist() == answer.tag_ids
        for ours, expected in (
            (topics.tag_logits[i], answer.tag_logits),
            (topics.topics[i, :real], answer.topics),
            (topics.stop_logits[i, :real], answer.stops),
            (topics.alpha[i, :real], answer.alpha),
            (topics.beta[i, :real], answer.beta),
        ):
            np.testing.assert_allclose(ours.detach(), expected, rtol=0, atol=1e-9)
    words = [logits for answer in answers for logits in answer.words]
    np.testing.assert_allclose(outputs.word_logits.detach(), words, rtol=0, atol=1e-9)


def test_terms_of_the_loss(case: Case) -> None:
    ours = case.terms()
    answers = case.answers(case.weights())
    for name in ("tag", "sent", "word", "attention"):
        expected = [getattr(answer, name) for answer in answers]
        assert getattr(ours, name).tolist() == pytest.approx(expected, abs=1e-9, rel=0)
    totals = [answer.total for answer in answers]
    assert ours.total(LAMBDAS).tolist() == pytest.approx(totals, abs=1e-9, rel=0)


def test_gradients(case: Case) -> None:
    """Autograd's against central differences of the plain loops, for every parameter tensor."""
    case.terms().total(LAMBDAS).sum().backward()
    weights = case.weights()
    step = 1e-5
    for name, parameter in case.model.named_parameters():
        assert parameter.grad is not None
        gradient = parameter.grad.flatten()
        # The entry that matters most, and some spread over the tensor.
        for entry in {
            int(gradient.abs().argmax()),
            *range(0, len(gradient), len(gradient) // 4 + 1),
        }:
            *path, last = np.unravel_index(entry, parameter.shape)
            row = weights[name]
            for i in path:
                row = row[i]
            value = row[last]
            sides = []
            for side in (step, -step):
                row[last] = value + side
                sides.append(sum(answer.total for answer in case.answers(weights)))
            row[last] = value
            expected = (sides[0] - sides[1]) / (2 * step)
            assert float(gradient[entry]) == pytest.approx(expected, rel=1e-6, abs=1e-8), name
        assert gradient.abs().max() > 1e-4, f"{name} has no say in the loss"
