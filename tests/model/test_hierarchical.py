from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import Tensor

from raymed.config import ModelConfig
from raymed.data.batches import IGNORED, Batch
from raymed.model.hierarchical import HierarchicalModel, Topics
from raymed.tokens import END, PAD, START
from raymed.training.loss import Terms, terms

WORDS, TAGS = 12, 7


@pytest.fixture
def model() -> HierarchicalModel:
    torch.manual_seed(0)
    config = ModelConfig(encoder="small", hidden_size=8, embedding_size=6, top_tags=3)
    return HierarchicalModel(config, TAGS, WORDS, pretrained=False).double().train()


def batch_of(lengths: list[list[int]]) -> Batch:
    """Random images; a report for each, given by the numbers of words of its sentences."""
    random = np.random.default_rng(3)
    sentences = max(len(report) for report in lengths)
    words = max(max(report) for report in lengths) + 2
    reports = np.full((len(lengths), sentences, words), PAD)
    stops = np.full((len(lengths), sentences), IGNORED)
    for image, report in enumerate(lengths):
        for s, length in enumerate(report):
            ids = [START, *random.integers(4, WORDS, length), END]
            reports[image, s, : len(ids)] = ids
            stops[image, s] = s + 1 == len(report)
    images = random.integers(0, 256, (len(lengths), 16, 16)).astype(np.uint8)
    return Batch(
        images=torch.from_numpy(images),
        reports=torch.from_numpy(reports),
        stops=torch.from_numpy(stops),
        tags=torch.from_numpy(random.integers(0, 2, (len(lengths), TAGS)).astype(float)),
        weights=torch.full((len(lengths),), 1 / len(lengths)),
        seeds=torch.from_numpy(random.integers(2**62, size=len(lengths))),
    )


def rows(batch: Batch, picked: list[int]) -> Batch:
    return Batch(**{name: value[picked] for name, value in vars(batch).items()})


def losses(model: HierarchicalModel, batch: Batch) -> Tensor:
    """[4, B]."""
    found = terms(model(batch.images, batch.reports, batch.seeds), batch)
    return torch.stack([getattr(found, f.name) for f in fields(Terms)]).detach()


def gradients(model: HierarchicalModel, batch: Batch) -> list[Tensor]:
    """Of the summed losses of all images."""
    model.zero_grad()
    found = terms(model(batch.images, batch.reports, batch.seeds), batch)
    torch.stack([getattr(found, f.name) for f in fields(Terms)]).sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


SHAPES = [[3, 1, 4], [2], [1, 1, 1, 1, 6], [5, 2]]


@pytest.mark.parametrize("picked", [[0], [1], [2], [3], [3, 0], [2, 1, 3, 0], [1, 1]])
def test_losses_do_not_depend_on_the_rest_of_the_batch(
    model: HierarchicalModel, picked: list[int]
) -> None:
    batch = batch_of(SHAPES)
    # Image 1 alone comes with the padding of the longest report, and the others likewise.
    whole = losses(model, batch)
    torch.testing.assert_close(losses(model, rows(batch, picked)), whole[:, picked])


def test_losses_and_gradients_do_not_depend_on_padding(model: HierarchicalModel) -> None:
    batch = batch_of(SHAPES)
    wider = Batch(
        **{
            **vars(batch),
            "reports": torch.nn.functional.pad(batch.reports, (0, 3, 0, 2), value=PAD),
            "stops": torch.nn.functional.pad(batch.stops, (0, 2), value=IGNORED),
        }
    )
    torch.testing.assert_close(losses(model, wider), losses(model, batch))
    for padded, plain in zip(gradients(model, wider), gradients(model, batch), strict=True):
        torch.testing.assert_close(padded, plain, rtol=1e-9, atol=1e-12)


def test_gradient_of_a_batch_is_the_sum_over_its_images(model: HierarchicalModel) -> None:
    batch = batch_of(SHAPES)
    alone = [gradients(model, rows(batch, [image])) for image in range(len(SHAPES))]
    for whole, *single in zip(gradients(model, batch), *alone, strict=True):
        torch.testing.assert_close(whole, torch.stack(single).sum(dim=0), rtol=1e-9, atol=1e-12)


def test_topics_do_not_depend_on_how_many_sentences_are_read(model: HierarchicalModel) -> None:
    images = batch_of(SHAPES).images
    many, few = model.read(images, sentences=6), model.read(images, sentences=2)
    for f in fields(Topics):
        long, short = getattr(many, f.name), getattr(few, f.name)
        if f.name not in ("tag_logits", "tag_ids"):
            assert long.shape[1] == 6
            long = long[:, :2]
        torch.testing.assert_close(long, short, rtol=0, atol=1e-12)


def test_tag_ids_are_the_likeliest_best_first(model: HierarchicalModel) -> None:
    topics = model.read(batch_of(SHAPES).images, sentences=1)
    for logits, ids in zip(topics.tag_logits.tolist(), topics.tag_ids.tolist(), strict=True):
        assert ids == sorted(range(TAGS), key=lambda tag: -logits[tag])[:3]


def test_attention_is_a_distribution_over_regions_and_over_tags(model: HierarchicalModel) -> None:
    topics = model.read(batch_of(SHAPES).images, sentences=4)
    assert topics.alpha.shape == (4, 4, 4)  # 16 pixels make 2 x 2 regions
    assert topics.beta.shape == (4, 4, 3)
    for attention in (topics.alpha, topics.beta):
        assert (attention > 0).all()
        torch.testing.assert_close(attention.sum(dim=2), torch.ones(4, 4, dtype=torch.float64))


def test_encoder_trains_only_if_told_to() -> None:
    config = ModelConfig(encoder="small", hidden_size=8, embedding_size=6, top_tags=3)
    for trained in (True, False):
        model = HierarchicalModel(
            config.model_copy(update={"train_encoder": trained}), TAGS, WORDS, pretrained=False
        ).double()
        gradients(model, batch_of(SHAPES))
        assert all((p.grad is not None) == trained for p in model.encoder.parameters())
        rest = [p for name, p in model.named_parameters() if not name.startswith("encoder.")]
        assert all(p.grad is not None for p in rest)


def test_words_and_tags_have_embeddings_of_their_own(model: HierarchicalModel) -> None:
    assert model.semantic_features.embedding.weight.shape == (TAGS, 6)
    assert model.word_lstm.embedding.weight.shape == (WORDS, 6)
