"""The default shapes can learn: eight studies by heart, word for word."""

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from raymed.config import Config
from raymed.data.batches import TokenisedSplit
from raymed.data.dataset import PreparedDataset
from raymed.data.phantom import draw
from raymed.data.prepare import prepare
from raymed.data.vocabulary import Vocabulary
from raymed.generation import generate
from raymed.model.encoder import Encoder
from raymed.model.hierarchical import HierarchicalModel
from raymed.training.loop import build_optimizer
from raymed.training.loss import terms

STUDIES = 8


class Remembered(nn.Module):
    """The features of a frozen encoder for the images of one batch."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features

    def forward(self, _: Tensor) -> Tensor:
        return self.features


@torch.no_grad()
def tell_images_apart(encoder: Encoder, images: Tensor) -> Tensor:
    """Scale the last convolution to features like those of a trained network; the features.

    After sixteen layers of random weights all images look nearly the same. Here each channel is
    0 in most regions and large in a few, so that images differ.
    """
    convolution = encoder.convolutions[-2]
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.bias is not None
    seen: list[Tensor] = []
    # A copy, because the ReLU after it works in place.
    hook = convolution.register_forward_hook(lambda _, __, output: seen.append(output.clone()))
    encoder(images)
    hook.remove()
    std, mean = torch.std_mean(seen[0], dim=(0, 2, 3))
    convolution.weight.mul_((4 / std).view(-1, 1, 1, 1))
    convolution.bias.copy_(4 * ((convolution.bias - mean) / std - 1))
    return torch.relu(4 * ((seen[0] - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1) - 1))


@pytest.mark.slow
def test_default_shapes_learn_eight_reports_by_heart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VGG-19's own layers stay frozen: one step that trains them takes ten seconds on a CPU."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "prepared"
    # More than are learned, so that there are more tags than the ten that are attended to.
    prepare(draw(60), out, source="phantom", console=Console(quiet=True))
    dataset = PreparedDataset.open(out)
    config = Config().override(
        {
            "model.encoder_weights": "none",
            "model.train_encoder": False,
            "training.learning_rate": 1e-3,
        }
    )
    vocabulary = Vocabulary.most_frequent(dataset.words, dataset.tags, config.data.vocabulary)
    split = TokenisedSplit(
        dataset.split("train"),
        vocabulary,
        config.generation.max_sentences,
        config.generation.max_words,
    )
    batch = split.batch(
        np.arange(STUDIES), np.arange(STUDIES), np.full(STUDIES, 1 / STUDIES, np.float32)
    )
    references = split.split.references[:STUDIES]
    assert len(set(references)) > STUDIES // 2

    torch.manual_seed(0)
    model = HierarchicalModel(config.model, len(dataset.tags), len(vocabulary), pretrained=True)
    model.tag_classifier.hidden.requires_grad_(False)
    optimizer = build_optimizer(model, config.training)
    encoder = model.encoder
    model.encoder = Remembered(tell_images_apart(encoder, batch.images))  # type: ignore[assignment]
    assert model.encoder(batch.images).shape == (STUDIES, 512, 14, 14)

    def written() -> list[str]:
        generated = generate(model.eval(), batch.images, config.generation)
        return [report.text for report in generated.reports(vocabulary)]

    for step in range(1, 301):
        model.train()
        outputs = model(batch.images, batch.reports)
        loss = terms(outputs, batch).total(config.loss).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.training.clip_norm)
        optimizer.step()
        if step >= 120 and step % 10 == 0 and written() == references:
            break
    # The whole model, from the images on.
    model.encoder = encoder
    assert written() == references
