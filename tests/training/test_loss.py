"""Each term of the loss, and its gradient, against plain loops over Python floats.

The whole model's loss is recomputed in tests/model/test_equations.py.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from raymed.config import LossConfig
from raymed.tokens import PAD
from raymed.training.loss import Terms, attention_loss, stop_loss, tag_loss, word_loss


def log_p(logits: list[float], target: int) -> float:
    return logits[target] - math.log(sum(math.exp(z) for z in logits))


def assert_equals(
    ours: Callable[[Tensor], Tensor], by_hand: Callable[[list], list[float]], x: Tensor
) -> None:
    """Values to 1e-9, and the gradient of every input against central differences."""
    x = x.double().requires_grad_()
    values = ours(x)
    assert values.tolist() == pytest.approx(by_hand(x.tolist()), abs=1e-9, rel=0)
    # Unequal weights, so that no image's gradient can stand in for another's.
    weights = torch.arange(1, len(values) + 1, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((values * weights).sum(), x)
    step = 1e-5
    for entry in range(x.numel()):
        sides = []
        for side in (step, -step):
            moved = x.detach().clone()
            moved.view(-1)[entry] += side
            found = by_hand(moved.tolist())
            sides.append(sum(w * value for w, value in zip(weights.tolist(), found, strict=True)))
        expected = (sides[0] - sides[1]) / (2 * step)
        assert float(gradient.flatten()[entry]) == pytest.approx(expected, abs=1e-8, rel=1e-6)


def test_tag_loss() -> None:
    tags = torch.tensor([[1, 0, 0, 1, 1], [0, 1, 0, 0, 0], [0] * 5, [1] * 5], dtype=torch.float64)

    def by_hand(logits: list[list[float]]) -> list[float]:
        found = []
        for z, row in zip(logits, tags.tolist(), strict=True):
            present = [tag for tag, given in enumerate(row) if given]
            found.append(sum(-log_p(z, tag) / len(present) for tag in present))
        return found

    torch.manual_seed(0)
    assert_equals(lambda z: tag_loss(z, tags), by_hand, 3 * torch.randn(4, 5))
    assert by_hand([[0.0] * 5] * 4)[2] == 0


def test_stop_loss() -> None:
    stops = torch.tensor([[0, 0, 1], [1, -1, -1], [0, 0, 0]])

    def by_hand(logits: list[list[list[float]]]) -> list[float]:
        return [
            sum(-log_p(z, stop) for z, stop in zip(image, labels, strict=True) if stop >= 0)
            for image, labels in zip(logits, stops.tolist(), strict=True)
        ]

    torch.manual_seed(1)
    assert_equals(lambda z: stop_loss(z, stops), by_hand, 3 * torch.randn(3, 3, 2))


def test_word_loss() -> None:
    # [B, S, T + 2]: the first column is START, which is never predicted.
    reports = torch.tensor(
        [
            [[1, 4, 5, 2], [1, 2, PAD, PAD]],
            [[1, 6, 2, PAD], [PAD] * 4],
            [[1, 3, 4, 5], [1, 6, 5, 2]],
        ]
    )
    targets = [
        (image, word)
        for image, report in enumerate(reports.tolist())
        for sentence in report
        for word in sentence[1:]
        if word != PAD
    ]

    def by_hand(logits: list[list[float]]) -> list[float]:
        found = [0.0] * len(reports)
        for z, (image, word) in zip(logits, targets, strict=True):
            found[image] -= log_p(z, word)
        return found

    torch.manual_seed(2)
    assert_equals(lambda z: word_loss(z, reports), by_hand, 2 * torch.randn(len(targets), 7))


def test_attention_loss() -> None:
    torch.manual_seed(3)
    attention = torch.rand(2, 3, 4)
    attention[1, 2:] = 0  # the second report has two sentences

    def by_hand(attention: list[list[list[float]]]) -> list[float]:
        return [
            sum((1 - sum(sentence[n] for sentence in image)) ** 2 for n in range(4))
            for image in attention
        ]

    assert_equals(attention_loss, by_hand, attention)


def test_total_is_the_weighted_sum_per_image() -> None:
    terms = Terms(*torch.tensor([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0], [1000.0, 2000.0]]))
    weights = LossConfig(tag=4, sent=3, word=2, attention=1)
    assert terms.total(weights).tolist() == [1234, 2468]
