"""The single-LSTM systems in plain loops, each by the equations of its own paper."""

import math
from collections.abc import Callable

from raymed.tokens import END
from tests.support.by_hand import (
    CELL,
    Answer,
    Image,
    Matrix,
    Passage,
    Vector,
    Weights,
    attend,
    classify,
    linear,
    lstm,
    mixed,
    plus,
    sigmoid,
    softmax,
    tanh,
    times,
    uncovered,
    words_after,
)


def one_sequence(report: list[list[int]]) -> list[int]:
    """START a START b c END: START before every sentence, END after the last if it was not cut."""
    sequence: list[int] = []
    for sentence in report:
        ends = sentence[-1] == END
        sequence += sentence[:-1] if ends else sentence
    return [*sequence, END] if ends else sequence


def dot(x: Vector, y: Vector) -> float:
    return sum(times(x, y))


def cnn_rnn(w: Weights, image: Image) -> Answer:
    """Vinyals et al. 2015, eqs. 10 to 12: x_-1 = W_I f, then the words."""
    tag_logits, feature, _ = classify(w, image)
    *inputs, last = one_sequence(image.report)
    first = linear(w["w_image.weight"], feature)
    words = words_after(w, first, inputs, Passage(image.seed))
    return Answer(tag_logits, [], [], [], [], [], words, [*inputs[1:], last], 0.0, image)


def lrcn(w: Weights, image: Image) -> Answer:
    """Donahue et al. 2015, factored: the image enters the second LSTM at every step."""
    tag_logits, feature, _ = classify(w, image)
    *inputs, last = one_sequence(image.report)
    x = linear(w["w_image.weight"], feature, w["w_image.bias"])
    cells = [[w[f"writer.lstm_{k}.{n}_l0"] for n in CELL] for k in (1, 2)]
    zeros = [0.0] * len(cells[0][1][0])
    h1, c1, h2, c2 = zeros, zeros, zeros, zeros
    words, passage = [], Passage(image.seed)
    for t, word in enumerate(inputs):
        h1, c1 = lstm(*cells[0], passage.read(t, w["writer.embedding.weight"][word]), h1, c1)
        h2, c2 = lstm(*cells[1], h1 + x, h2, c2)
        output = passage.written(t, h2)
        words.append(linear(w["writer.w_out.weight"], output, w["writer.w_out.bias"]))
    return Answer(tag_logits, [], [], [], [], [], words, [*inputs[1:], last], 0.0, image)


def soft_att(w: Weights, image: Image) -> Answer:
    """Xu et al. 2015, soft attention."""
    tag_logits, _, _ = classify(w, image)
    *inputs, last = one_sequence(image.report)
    a = image.regions
    mean = [sum(column) / len(a) for column in zip(*a, strict=True)]

    def layer(name: str, x: Vector) -> Vector:
        return linear(w[f"writer.{name}.weight"], x, w.get(f"writer.{name}.bias"))

    h, c = tanh(layer("init_h", mean)), tanh(layer("init_c", mean))
    words, alphas, passage = [], [], Passage(image.seed)
    for t, word in enumerate(inputs):
        embedded = passage.read(t, w["writer.embedding.weight"][word])
        attended, alpha = attend(w, "writer.attention", a, h)
        gate = sigmoid(layer("gate", h)[0])  # section 4.2.1, from the previous h
        z = [gate * x for x in attended]
        h, c = lstm(*(w[f"writer.cell.{n}"] for n in CELL), embedded + z, h, c)
        deep = plus(plus(embedded, layer("l_h", h)), layer("l_z", z))  # eq. 7
        words.append(layer("l_o", passage.written(t, deep)))
        alphas.append(alpha)
    targets = [*inputs[1:], last]
    # Eq. 14
    return Answer(tag_logits, [], [], [], alphas, [], words, targets, uncovered(alphas), image)


def att_rk(w: Weights, image: Image) -> Answer:
    """You et al. 2016."""
    tag_logits, feature, tag_ids = classify(w, image)
    *inputs, last = one_sequence(image.report)
    a = [w["semantic_features.embedding.weight"][i] for i in tag_ids]
    embeddings: Matrix = w["writer.embedding.weight"]
    cell = [w[f"writer.cell.{n}"] for n in CELL]
    size = len(cell[1][0])
    x = linear(w["writer.w_xv.weight"], feature)  # eq. 2
    h, c = lstm(*cell, x, [0.0] * size, [0.0] * size)
    words, alphas, betas, passage = [], [], [], Passage(image.seed)
    for t, word in enumerate(inputs):
        y = passage.read(t, embeddings[word])
        alpha = softmax([dot(y, linear(w["writer.u.weight"], a_i)) for a_i in a])  # eq. 4
        read = plus(y, times(w["writer.w_xa"], mixed(alpha, a)))
        h, c = lstm(*cell, linear(w["writer.w_xy.weight"], read), h, c)  # eq. 5
        active = [tanh(a_i) for a_i in a]
        beta = softmax([dot(h, linear(w["writer.v.weight"], s_i)) for s_i in active])  # eq. 6
        said = plus(
            linear(w["writer.w_yh.weight"], h), times(w["writer.w_ya"], mixed(beta, active))
        )
        words.append(linear(embeddings, passage.written(t, said)))  # eq. 7
        alphas.append(alpha)
        betas.append(beta)
    return Answer(
        tag_logits,
        tag_ids,
        [],
        [],
        alphas,
        betas,
        words,
        [*inputs[1:], last],
        spread(alphas) + spread(betas),
        image,
    )


def spread(attention: Matrix) -> float:
    """Eq. 12 of You et al.: ||A||_1,p + ||A'||_q,1, with p = 2 and q = 1/2."""
    columns = [sum(row[i] for row in attention) for i in range(len(attention[0]))]
    rows = [sum(math.sqrt(x) for x in row) ** 2 for row in attention]
    return math.hypot(*columns) + sum(rows)


SYSTEMS: dict[str, Callable[[Weights, Image], Answer]] = {
    "cnn_rnn": cnn_rnn,
    "lrcn": lrcn,
    "soft_att": soft_att,
    "att_rk": att_rk,
}
