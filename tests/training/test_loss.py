"""Each term of the loss, and its gradient, against plain loops over Python floats.

A whole system's loss is recomputed in tests/model/test_equations.py.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from raymed.data.batches import Batch
from raymed.model.attention import coverage_penalty
from raymed.model.system import NextWords, Outputs
from raymed.model.systems.att_rk import spread
from raymed.sections import LossConfig
from raymed.tokens import PAD
from raymed.training.loss import LossTerms, loss_terms, stop_loss, tag_loss, word_loss


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


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_word_loss(smoothing: float) -> None:
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
            for v in range(7):
                target = smoothing / 7 + (1 - smoothing) * (v == word)
                found[image] -= target * log_p(z, v)
        return found

    def ours(logits: Tensor) -> Tensor:
        return word_loss(NextWords(logits, words, images), len(reports), smoothing)

    torch.manual_seed(2)
    images, words = torch.tensor(targets).T
    logits = 2 * torch.randn(len(targets), 7)
    assert_equals(ours, by_hand, logits)
    # In whatever order they come, and of images without a word too.
    order = torch.randperm(len(targets))
    mixed = NextWords(logits[order], words[order], images[order])
    shuffled = word_loss(mixed, len(reports) + 1, smoothing)
    expected = [*ours(logits).tolist(), 0]
    assert shuffled.tolist() == pytest.approx(expected, rel=1e-5)


# The second report has two sentences.
REAL = torch.tensor([[True, True, True], [True, True, False]])


def test_coverage_penalty() -> None:
    def by_hand(attention: list[list[list[float]]]) -> list[float]:
        return [
            sum((1 - sum(image[s][n] for s in range(3) if real[s])) ** 2 for n in range(4))
            for image, real in zip(attention, REAL.tolist(), strict=True)
        ]

    torch.manual_seed(3)
    assert_equals(lambda x: coverage_penalty(x, REAL), by_hand, torch.rand(2, 3, 4))
    assert coverage_penalty(None, REAL).tolist() == [0, 0]


def test_spread() -> None:
    """Eq. 12 of You et al. with exponents 2 and 1/2."""

    def by_hand(attention: list[list[list[float]]]) -> list[float]:
        found = []
        for image, real in zip(attention, REAL.tolist(), strict=True):
            rows = [row for row, is_real in zip(image, real, strict=True) if is_real]
            over_report = math.sqrt(sum(sum(column) ** 2 for column in zip(*rows, strict=True)))
            found.append(over_report + sum(sum(map(math.sqrt, row)) ** 2 for row in rows))
        return found

    torch.manual_seed(4)
    assert_equals(lambda x: spread(x, REAL), by_hand, torch.rand(2, 3, 4) + 0.1)


def test_attention_on_one_tag_alone_has_a_finite_gradient() -> None:
    attention = torch.tensor([[[1.0, 0.0, 0.0]]], requires_grad=True)
    value = spread(attention, torch.tensor([[True]]))
    value.sum().backward()
    # (1 + 2 sqrt(1e-6))^2, because attention is taken as 1e-6 at least, and 1 over the report.
    assert value.item() == pytest.approx(1 + 1.002**2, rel=1e-6)
    assert attention.grad.isfinite().all()


def test_a_term_the_system_lacks_is_zero() -> None:
    reports = torch.tensor([[[1, 4, 2]], [[1, 2, PAD]]])
    images, weights = torch.zeros(2, 4, 4, dtype=torch.uint8), torch.full((2,), 0.5)
    tags, stops = torch.eye(2), torch.ones(2, 1, dtype=torch.int64)
    seeds = rows = torch.zeros(2, dtype=torch.int64)
    batch = Batch(images, reports, stops, tags, weights, seeds, rows)
    found = loss_terms(Outputs(torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])), batch)
    assert found.tag.tolist() == pytest.approx([math.log(2), math.log(4 / 3)])
    for absent in (found.sent, found.word, found.attention):
        assert absent.tolist() == [0, 0]


def test_total_is_the_weighted_sum_per_image() -> None:
    loss_terms = LossTerms(
        *torch.tensor([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0], [1000.0, 2000.0]])
    )
    weights = LossConfig(tag=4, sent=3, word=2, attention=1)
    assert loss_terms.total(weights).tolist() == [1234, 2468]
