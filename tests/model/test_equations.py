"""A training step of each system, against its equations in plain loops over Python floats."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raymed.data.batches import Batch
from raymed.model import encoder, encoder_shapes
from raymed.model.encoder import build_encoder
from raymed.model.system import System
from raymed.model.systems import SYSTEMS, build_system, transformer
from raymed.sections import ModelConfig
from raymed.tokens import END, PAD, START, UNKNOWN
from raymed.training.loss import LossTerms, loss_terms
from tests.support import hierarchical_by_hand, single_lstm_by_hand, transformer_by_hand
from tests.support.by_hand import (
    DECODER_DROPOUT,
    DROPOUT,
    EMBEDDING_DROPOUT,
    LAMBDAS,
    TAGS,
    TOP,
    WORDS,
    Answer,
    Image,
    Weights,
    tags_alone,
)
from tests.support.splitmix import draws

BY_HAND = {
    **hierarchical_by_hand.SYSTEMS,
    **single_lstm_by_hand.SYSTEMS,
    "transformer": transformer_by_hand.transformer,
    "vgg19_tags": tags_alone,
}


class Fixed(nn.Module):
    """Convolutions whose feature map is a parameter, to take its gradient."""

    def __init__(self, feature_map: Tensor) -> None:
        super().__init__()
        self.feature_map = nn.Parameter(feature_map)

    def forward(self, _: Tensor) -> Tensor:
        return self.feature_map


@dataclass
class Case:
    system: str
    model: System
    batch: Batch

    def weights(self) -> Weights:
        return {name: p.detach().tolist() for name, p in self.model.named_parameters()}

    def images(self, w: Weights) -> list[Image]:
        """The batch as plain lists without padding."""
        widths = [layer.out_features for layer in self.model.encoder.hidden]
        return [
            Image(
                feature_map=w["encoder.convolutions.feature_map"][i],
                report=[[t for t in ids if t != PAD] for ids in report if ids[0] == START],
                stops=[stop for stop in self.batch.stops[i].tolist() if stop >= 0],
                tags=self.batch.tags[i].nonzero().flatten().tolist(),
                kept=[
                    [draw >= DROPOUT for draw in draws(seed + layer, width)]
                    for layer, width in enumerate(widths)
                ]
                if self.model.training
                else None,
                seed=seed if self.model.training else None,
            )
            for i, (report, seed) in enumerate(
                zip(self.batch.reports.tolist(), self.batch.seeds.tolist(), strict=True)
            )
        ]

    def answers(self, w: Weights) -> list[Answer]:
        return [BY_HAND[self.system](w, image) for image in self.images(w)]

    def loss_terms(self) -> LossTerms:
        passages = self.model.passages(self.batch.reports)
        outputs = self.model(self.batch.images, passages, self.batch.seeds)
        return loss_terms(outputs, self.batch)


@pytest.fixture(params=SYSTEMS)
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Case:
    """Three images: a whole report; one cut in its words; one cut in its sentences, untagged."""
    monkeypatch.setattr(encoder, "SMALL_WIDTHS", (8, 8, 8, 8))
    monkeypatch.setattr(transformer, "LAYERS", transformer_by_hand.LAYERS)
    monkeypatch.setattr(transformer, "HEADS", transformer_by_hand.HEADS)
    monkeypatch.setitem(encoder_shapes.DEPTHS, "small", 8)
    torch.manual_seed(1)
    config = ModelConfig(
        system=request.param,
        encoder="small",
        hidden_size=6,
        embedding_size=5,
        top_tags=TOP,
        dropout=DROPOUT,
        embedding_dropout=EMBEDDING_DROPOUT,
        decoder_dropout=DECODER_DROPOUT,
    )
    network = build_encoder(config.encoder, dropout=config.dropout)
    model = build_system(config, TAGS, WORDS, network).double()
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
        rows=torch.arange(3),
    )
    network.convolutions = Fixed(torch.rand(3, 8, 3, 3, dtype=torch.float64))
    return Case(request.param, model.train(), batch)


def assert_close(ours: Tensor, expected: list) -> None:
    np.testing.assert_allclose(ours.detach(), expected, rtol=0, atol=1e-9)


def test_forward_pass(case: Case) -> None:
    answers = case.answers(case.weights())
    passages = case.model.passages(case.batch.reports)
    outputs = case.model(case.batch.images, passages, case.batch.seeds)
    assert_close(outputs.tag_logits, [answer.tag_logits for answer in answers])
    assert (outputs.stop_logits is None) == (not answers[0].stops)
    for i, answer in enumerate(answers):
        if answer.stops:
            assert_close(outputs.stop_logits[i, : len(answer.stops)], answer.stops)
    assert (outputs.words is None) == (not answers[0].words)
    if outputs.words:
        assert_close(outputs.words.logits, [z for answer in answers for z in answer.words])
        owned = [(i, word) for i, answer in enumerate(answers) for word in answer.targets]
        found = zip(outputs.words.images.tolist(), outputs.words.targets.tolist(), strict=True)
        assert list(found) == owned


def test_reading(case: Case) -> None:
    """The reading, without dropout."""
    case.model.eval()
    sentences = case.batch.reports.shape[1]
    reading = case.model.read(case.batch.images, sentences)
    for i, answer in enumerate(case.answers(case.weights())):
        assert_close(reading.tag_logits[i], answer.tag_logits)
        if answer.tag_ids:
            assert reading.tag_ids[i].tolist() == answer.tag_ids
        else:
            assert reading.tag_ids is None
        if not answer.topics:
            continue
        real = len(answer.topics)
        (topics,) = reading.context
        assert_close(topics[i, :real], answer.topics)
        assert_close(reading.stop_logits[i, :real], answer.stops)
        for ours, expected in ((reading.alpha, answer.alpha), (reading.beta, answer.beta)):
            assert (ours is None) == (not expected)
            if expected:
                assert_close(ours[i, :real], expected)


def test_terms_of_the_loss(case: Case) -> None:
    ours = case.loss_terms()
    answers = case.answers(case.weights())
    for name in ("tag", "sent", "word", "attention"):
        expected = [getattr(answer, name) for answer in answers]
        assert getattr(ours, name).tolist() == pytest.approx(expected, abs=1e-9, rel=0)
    totals = [answer.total for answer in answers]
    assert ours.total(LAMBDAS).tolist() == pytest.approx(totals, abs=1e-9, rel=0)


def picked(gradient: Tensor) -> Iterator[int]:
    """The entry that matters most, and some spread over the tensor."""
    size = len(gradient)
    yield from {int(gradient.abs().argmax()), *range(0, size, size // 4 + 1)}


def test_gradients(case: Case) -> None:
    """Autograd's against central differences of the plain loops, for every parameter tensor."""
    case.loss_terms().total(LAMBDAS).sum().backward()
    weights = case.weights()
    step = 1e-5
    for name, parameter in case.model.named_parameters():
        assert parameter.grad is not None
        gradient = parameter.grad.flatten()
        for entry in picked(gradient):
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
