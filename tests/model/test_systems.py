"""What holds for every system."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from raymed.data.batches import IGNORED, Batch
from raymed.model.encoder import build_encoder
from raymed.model.system import System
from raymed.model.systems import SYSTEMS, build_system
from raymed.sections import ModelConfig
from raymed.tokens import END, PAD, START
from raymed.training.loss import LossTerms, loss_terms

WORDS, TAGS = 12, 7
SHAPES = [[3, 1, 4], [2], [1, 1, 1, 1, 6], [5, 2]]
"""Of the reports of four images: how many words their sentences have."""


def config_of(system: str, **others: object) -> ModelConfig:
    settings = {"encoder": "small", "hidden_size": 8, "embedding_size": 6, "top_tags": 3}
    settings |= {"embedding_dropout": 0.2, "decoder_dropout": 0.3}
    return ModelConfig.model_validate({"system": system} | settings | others)


@pytest.fixture(params=SYSTEMS)
def model(request: pytest.FixtureRequest) -> System:
    torch.manual_seed(0)
    config = config_of(request.param)
    encoder = build_encoder(config.encoder, dropout=config.dropout)
    return build_system(config, TAGS, WORDS, encoder).double().train()


@pytest.fixture
def batch() -> Batch:
    """Random images and reports; the last sentence of the second report is cut."""
    random = np.random.default_rng(3)
    sentences, words = max(map(len, SHAPES)), max(map(max, SHAPES)) + 2
    reports = np.full((len(SHAPES), sentences, words), PAD)
    stops = np.full((len(SHAPES), sentences), IGNORED)
    for image, report in enumerate(SHAPES):
        for s, length in enumerate(report):
            ids = [START, *random.integers(4, WORDS, length), *([] if image == 1 else [END])]
            reports[image, s, : len(ids)] = ids
            stops[image, s] = s + 1 == len(report)
    images = random.integers(0, 256, (len(SHAPES), 16, 16)).astype(np.uint8)
    return Batch(
        images=torch.from_numpy(images),
        reports=torch.from_numpy(reports),
        stops=torch.from_numpy(stops),
        tags=torch.from_numpy(random.integers(0, 2, (len(SHAPES), TAGS)).astype(float)),
        weights=torch.full((len(SHAPES),), 1 / len(SHAPES)),
        seeds=torch.from_numpy(random.integers(2**62, size=len(SHAPES))),
        rows=torch.arange(len(SHAPES)),
    )


def test_a_system_that_writes_no_reports_says_so() -> None:
    models = {s: build_system(config_of(s), TAGS, WORDS, build_encoder("small")) for s in SYSTEMS}
    assert [name for name, model in models.items() if not model.writes_reports] == ["vgg19_tags"]
    assert all(model.writes_reports == (model.writer is not None) for model in models.values())


def rows(batch: Batch, picked: list[int]) -> Batch:
    return Batch(**{name: value[picked] for name, value in vars(batch).items()})


def unpadded(batch: Batch) -> Batch:
    """With no more padding than its longest report and sentence need."""
    sentences = int((batch.stops != IGNORED).sum(dim=1).max())
    words = int((batch.reports != PAD).sum(dim=2).max())
    cut = {
        "reports": batch.reports[:, :sentences, :words],
        "stops": batch.stops[:, :sentences],
    }
    return Batch(**(vars(batch) | cut))


def padded(batch: Batch) -> Batch:
    more = {
        "reports": torch.nn.functional.pad(batch.reports, (0, 3, 0, 2), value=PAD),
        "stops": torch.nn.functional.pad(batch.stops, (0, 2), value=IGNORED),
    }
    return Batch(**(vars(batch) | more))


def losses(model: System, batch: Batch) -> Tensor:
    """[4, B]."""
    found = loss_terms(model(batch.images, model.passages(batch.reports), batch.seeds), batch)
    return torch.stack([getattr(found, f.name).double() for f in fields(LossTerms)]).detach()


def gradients(model: System, batch: Batch) -> list[Tensor]:
    """Of the summed losses of all images."""
    model.zero_grad()
    found = loss_terms(model(batch.images, model.passages(batch.reports), batch.seeds), batch)
    torch.stack([getattr(found, f.name) for f in fields(LossTerms)]).sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("picked", [[0], [1], [2], [3], [3, 0], [2, 1, 3, 0], [1, 1]])
def test_losses_do_not_depend_on_the_rest_of_the_batch(
    model: System, batch: Batch, picked: list[int]
) -> None:
    # Image 1 alone comes with the padding of the longest report, and the others likewise.
    whole = losses(model, batch)
    torch.testing.assert_close(losses(model, rows(batch, picked)), whole[:, picked])
    torch.testing.assert_close(losses(model, unpadded(rows(batch, picked))), whole[:, picked])


def test_losses_and_gradients_do_not_depend_on_padding(model: System, batch: Batch) -> None:
    torch.testing.assert_close(losses(model, padded(batch)), losses(model, batch))
    both = zip(gradients(model, padded(batch)), gradients(model, batch), strict=True)
    for wider, plain in both:
        torch.testing.assert_close(wider, plain, rtol=1e-9, atol=1e-12)


def test_gradient_of_a_batch_is_the_sum_over_its_images(model: System, batch: Batch) -> None:
    alone = [gradients(model, unpadded(rows(batch, [image]))) for image in range(len(SHAPES))]
    for whole, *single in zip(gradients(model, batch), *alone, strict=True):
        torch.testing.assert_close(whole, torch.stack(single).sum(dim=0), rtol=1e-9, atol=1e-12)


def test_features_can_replace_images(model: System, batch: Batch) -> None:
    """The model without its encoder, given the encoder's features; in float64 nothing is rounded.

    Dropout is off between the encoder's layers, as where it is frozen, and on after them.
    """
    encoder = model.encoder
    assert encoder is not None
    encoder.eval()
    from_images = losses(model, batch)
    features = rows(batch, [3, 1, 2, 0])
    feature_map, hidden = encoder(features.images)
    model.encoder = None
    features = replace(features, images=(feature_map.detach(), hidden.detach()))
    torch.testing.assert_close(losses(model, features), from_images[:, [3, 1, 2, 0]])
    assert not torch.allclose(losses(model.eval(), features), from_images[:, [3, 1, 2, 0]])
    # Half the bits are enough to say the same but for rounding.
    halved = replace(features, images=(feature_map.half(), hidden.half()))
    torch.testing.assert_close(losses(model, halved), losses(model, features), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("trained", ["all", "hidden", "none"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_what_is_configured_of_the_encoder_trains(system: str, batch: Batch, trained: str) -> None:
    config = config_of(system, train_encoder=trained)
    model = build_system(config, TAGS, WORDS, build_encoder(config.encoder)).double()
    gradients(model, batch)
    hidden, convolutions = (
        model.encoder.hidden.parameters(),
        model.encoder.convolutions.parameters(),
    )
    assert all((p.grad is not None) == (trained != "none") for p in hidden)
    assert all((p.grad is not None) == (trained == "all") for p in convolutions)
    rest = [p for name, p in model.named_parameters() if not name.startswith("encoder.")]
    assert all(p.grad is not None for p in rest)
