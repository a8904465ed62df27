"""Every system can learn: eight studies by heart, word for word."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raymed.config import Config
from raymed.data.batches import Batch, TokenisedSplit
from raymed.data.dataset import PreparedDataset
from raymed.data.vocabulary import Vocabulary
from raymed.generation import generate
from raymed.model.encoder import Encoder, build_encoder
from raymed.model.system import System
from raymed.model.systems import SYSTEMS, build_system
from raymed.training.loss import loss_terms
from raymed.training.optimizer import build_optimizer
from tests.support.prepared import prepare_phantom

STUDIES = 8


@torch.no_grad()
def tell_images_apart(encoder: Encoder, images: Tensor) -> None:
    """Scale the last convolution to features like those of a trained network.

    After sixteen layers of random weights all images look nearly the same. Here each channel is
    0 in most regions and large in a few, so that images differ.
    """
    convolution = encoder.convolutions[-2]
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.bias is not None
    seen: list[Tensor] = []
    # A copy, because the ReLU after it works in place.
    hook = convolution.register_forward_hook(lambda _, __, output: seen.append(output.clone()))
    encoder.convolutions((images.unsqueeze(1) / 255 - encoder.mean) / encoder.std)
    hook.remove()
    std, mean = torch.std_mean(seen[0], dim=(0, 2, 3))
    convolution.weight.mul_((4 / std).view(-1, 1, 1, 1))
    convolution.bias.copy_(4 * ((convolution.bias - mean) / std - 1))


@dataclass
class Lesson:
    """Eight studies of the training split of a configuration's dataset."""

    config: Config
    vocabulary: Vocabulary
    batch: Batch
    references: list[str]

    @classmethod
    def of(cls, config: Config) -> "Lesson":
        dataset = PreparedDataset.open(config.data.path)
        vocabulary = Vocabulary.most_frequent(dataset.words, dataset.tags, config.data.vocabulary)
        limits = config.generation.max_sentences, config.generation.max_words
        split = TokenisedSplit(dataset.split("train"), vocabulary, *limits)
        rows = np.arange(STUDIES)
        batch = split.batch(rows, rows, np.full(STUDIES, 1 / STUDIES, np.float32))
        references = split.split.references[:STUDIES]
        assert len(set(references)) > STUDIES // 2
        return cls(config, vocabulary, batch, references)

    def build(self) -> System:
        torch.manual_seed(0)
        sizes = len(self.vocabulary.tags), len(self.vocabulary)
        encoder = build_encoder(self.config.model.encoder)
        return build_system(self.config.model, *sizes, encoder)

    def known(self, model: System) -> bool:
        """Whether every report is written word for word; without reports, every tag is found."""
        generated = generate(model.eval(), self.batch.images, self.config.generation)
        reports = generated.reports(self.vocabulary)
        if model.writer is not None:
            return [report.text for report in reports] == self.references
        truth = [set(tags.nonzero().flatten().tolist()) for tags in self.batch.tags]
        return truth == [
            {self.vocabulary.tag_ids[tag] for tag, _ in report.tags[: len(tags)]}
            for report, tags in zip(reports, truth, strict=True)
        ]

    def learn(self, model: System, optimizer: torch.optim.Optimizer, steps: int) -> None:
        """Until all is known, or for so many steps."""
        for step in range(1, steps + 1):
            model.train()
            outputs = model(self.batch.images, model.passages(self.batch.reports))
            loss = loss_terms(outputs, self.batch).total(self.config.loss).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), self.config.training.clip_norm)
            optimizer.step()
            if step >= 80 and step % 10 == 0 and self.known(model):
                break


@pytest.mark.parametrize(
    "system",
    [pytest.param(s, marks=pytest.mark.slow) if s == "att_rk" else s for s in SYSTEMS],
)
def test_a_system_overfits_eight_studies(system: str, tiny: Config) -> None:
    lesson = Lesson.of(
        tiny.override(
            {
                "model.system": system,
                "model.hidden_size": 128,
                "model.embedding_size": 128,
                "training.learning_rate": 3e-3,
                "training.encoder_learning_rate": 1e-3,
                # Over so many words and so few tags the regularisation outweighs the words.
                "loss.attention": 0.1,
            }
        )
    )
    model = lesson.build()
    assert not lesson.known(model)
    lesson.learn(model, build_optimizer(model, lesson.config.training), steps=400)
    assert lesson.known(model)


@pytest.mark.slow
def test_default_sizes_overfit_eight_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VGG-19 stays frozen, and is learned from by its features: a step takes no ten seconds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # More than are learned, so that there are more tags than the ten that are attended to.
    prepare_phantom(tmp_path / "prepared", 60, image_size=224)
    lesson = Lesson.of(
        Config().override(
            {
                "data.path": str(tmp_path / "prepared"),
                "model.encoder_weights": "none",
                "model.train_encoder": "none",
                "training.learning_rate": 1e-3,
            }
        )
    )
    model = lesson.build()
    optimizer = build_optimizer(model, lesson.config.training)
    images = lesson.batch.images
    assert isinstance(images, Tensor)
    assert model.encoder is not None
    tell_images_apart(model.encoder, images)
    feature_map, hidden = (each.half() for each in model.encoder(images))
    assert (feature_map.shape, hidden.shape) == ((STUDIES, 512, 14, 14), (STUDIES, 4096))
    lesson.batch = replace(lesson.batch, images=(feature_map, hidden))
    lesson.learn(model, optimizer, steps=300)
    # The whole model, from the images on.
    lesson.batch = replace(lesson.batch, images=images)
    assert lesson.known(model)
