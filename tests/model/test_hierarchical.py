import pytest
import torch
from torch import Tensor

from raymed.model.encoder import build_encoder
from raymed.model.hierarchical import Hierarchical
from raymed.model.systems import build_system
from raymed.sections import ModelConfig

WORDS, TAGS = 12, 7
HIERARCHICAL = ("co_attention", "visual_only", "semantic_only", "no_attention")


@pytest.fixture(params=HIERARCHICAL)
def model(request: pytest.FixtureRequest) -> Hierarchical:
    torch.manual_seed(0)
    config = ModelConfig(
        system=request.param, encoder="small", hidden_size=8, embedding_size=6, top_tags=3
    )
    encoder = build_encoder(config.encoder, dropout=config.dropout)
    model = build_system(config, TAGS, WORDS, encoder).double()
    assert isinstance(model, Hierarchical)
    return model.train()


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (4, 16, 16), generator=torch.Generator().manual_seed(3)).byte()


def test_topics_do_not_depend_on_how_many_sentences_are_read(
    model: Hierarchical, images: Tensor
) -> None:
    many, few = model.read(images, sentences=6), model.read(images, sentences=2)
    torch.testing.assert_close(many.tag_logits, few.tag_logits, rtol=0, atol=1e-12)
    for long, short in (
        (many.context[0], few.context[0]),
        (many.stop_logits, few.stop_logits),
        *([(many.alpha, few.alpha)] if model.visual else []),
        *([(many.beta, few.beta)] if model.semantic else []),
    ):
        assert long.shape[1] == 6
        torch.testing.assert_close(long[:, :2], short, rtol=0, atol=1e-12)


def test_tag_ids_are_the_most_probable_in_order(model: Hierarchical, images: Tensor) -> None:
    reading = model.read(images, sentences=1)
    if not model.semantic:
        assert reading.tag_ids is None
        return
    for logits, ids in zip(reading.tag_logits.tolist(), reading.tag_ids.tolist(), strict=True):
        assert ids == sorted(range(TAGS), key=lambda tag: -logits[tag])[:3]


def test_attention_is_a_distribution_over_regions_and_over_tags(
    model: Hierarchical, images: Tensor
) -> None:
    reading = model.read(images, sentences=4)
    for attention, there, width in (
        (reading.alpha, model.visual, 4),  # 16 pixels make 2 x 2 regions
        (reading.beta, model.semantic, 3),
    ):
        assert (attention is not None) == there
        if there:
            assert attention.shape == (4, 4, width)
            assert (attention > 0).all()
            torch.testing.assert_close(attention.sum(dim=2), torch.ones(4, 4).double())


def test_words_and_tags_have_separate_embeddings(model: Hierarchical) -> None:
    assert model.writer.embedding.weight.shape == (WORDS, 6)
    if model.semantic:
        assert model.semantic_features.embedding.weight.shape == (TAGS, 6)
