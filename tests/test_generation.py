from dataclasses import fields

import pytest
import torch
from torch import Tensor

from raymed.config import GenerationConfig, ModelConfig
from raymed.data.vocabulary import Vocabulary
from raymed.generation import Generated, generate, report_lengths, write_sentences
from raymed.model.hierarchical import HierarchicalModel, Topics
from raymed.tokens import END, PAD, SPECIAL, START, UNKNOWN

WORDS, TAGS = 14, 6
SETTINGS = GenerationConfig(stop_threshold=0.5, max_sentences=5, max_words=8)


@pytest.fixture
def model() -> HierarchicalModel:
    """Weights so wide that sentences, lengths and stops differ between images."""
    torch.manual_seed(17)
    config = ModelConfig(encoder="small", hidden_size=9, embedding_size=7, top_tags=3)
    model = HierarchicalModel(config, TAGS, WORDS, pretrained=False).double().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.startswith("encoder."):
                p.normal_(std=3 / p.shape[-1] ** 0.5)
        # Else most sentences run in circles until they are cut.
        model.word_lstm.w_out.weight[END] *= 3
    return model


@pytest.fixture
def images() -> Tensor:
    """Four plain squares each, so that the images differ more than noise does."""
    squares = torch.randint(0, 256, (12, 2, 2), generator=torch.Generator().manual_seed(0))
    return squares.to(torch.uint8).repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)


def write_one_by_one(model: HierarchicalModel, image: Tensor, threshold: float) -> list[list[int]]:
    """A report, sentence by sentence, the whole prefix read again for every word."""
    sentences: list[list[int]] = []
    while len(sentences) < SETTINGS.max_sentences:
        topics = model.read(image.unsqueeze(0), sentences=len(sentences) + 1)
        topic, stop = topics.topics[:, -1], topics.stop_logits[0, -1]
        words: list[int] = []
        while len(words) < SETTINGS.max_words:
            # A word has to stand behind the prefix for its logits to be given: any but PAD.
            prefix = torch.tensor([[START, *words, END]])
            ranked = model.word_lstm(topic, prefix)[-1].argsort(descending=True).tolist()
            best = next(word for word in ranked if word not in (PAD, START, UNKNOWN))
            if best == END:
                break
            words.append(best)
        sentences.append(words)
        p_continue, p_stop = torch.exp(stop - stop.max()).tolist()
        if p_stop / (p_continue + p_stop) > threshold:
            break
    return sentences


def as_lists(generated: Generated) -> list[list[list[int]]]:
    return [
        [[word for word in ids if word != PAD] for ids in report[:length]]
        for report, length in zip(generated.words.tolist(), generated.lengths.tolist(), strict=True)
    ]


def settings_that_stop(model: HierarchicalModel, images: Tensor, share: float) -> GenerationConfig:
    """With a threshold that about this share of all sentences' p(STOP) lies below."""
    p_stop = generate(model, images, SETTINGS).stop_probability.flatten().sort().values
    middle = int(share * len(p_stop))
    # In the widest gap near there: no rounding can push a sentence over the threshold.
    near = range(middle - 5, middle + 5)
    gap = max(near, key=lambda i: float(p_stop[i + 1] - p_stop[i]))
    threshold = float(p_stop[gap : gap + 2].mean())
    return SETTINGS.model_copy(update={"stop_threshold": threshold})


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_batched_equals_one_sentence_at_a_time(
    model: HierarchicalModel, images: Tensor, share: float
) -> None:
    settings = settings_that_stop(model, images, share)
    written = as_lists(generate(model, images, settings))
    with torch.no_grad():
        expected = [write_one_by_one(model, image, settings.stop_threshold) for image in images]
    assert written == expected
    # The case is worth its name: reports and sentences of several lengths.
    if share == 0.5:
        assert len({len(report) for report in written}) > 1
        assert len({len(ids) for report in written for ids in report}) > 1


def test_a_report_does_not_depend_on_its_batch(model: HierarchicalModel, images: Tensor) -> None:
    written = as_lists(generate(model, images, SETTINGS))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    assert as_lists(generate(model, images[order], SETTINGS)) == [written[i] for i in order]
    for i in range(len(images)):
        assert as_lists(generate(model, images[i : i + 1], SETTINGS)) == [written[i]]


def test_nothing_is_written_after_the_stop(model: HierarchicalModel, images: Tensor) -> None:
    settings = settings_that_stop(model, images, 0.5)
    generated = generate(model, images, settings)
    probabilities = generated.stop_probability.tolist()
    for p_stop, length, words in zip(
        probabilities, generated.lengths.tolist(), generated.words.tolist(), strict=True
    ):
        assert all(p <= settings.stop_threshold for p in p_stop[: length - 1])
        assert length == SETTINGS.max_sentences or p_stop[length - 1] > settings.stop_threshold
        assert all(word == PAD for sentence in words[length:] for word in sentence)
    assert generated.lengths.min() < SETTINGS.max_sentences


def test_report_lengths() -> None:
    p_stop = torch.tensor(
        [[0.9, 0.1, 0.9], [0.1, 0.6, 0.9], [0.1, 0.2, 0.3], [0.5, 0.5, 0.51], [0.0, 1.0, 0.0]]
    )
    assert report_lengths(p_stop, 0.5).tolist() == [1, 2, 3, 3, 2]
    # Nothing is above 1, everything that is not 0 is above 0.
    assert report_lengths(p_stop, 1.0).tolist() == [3] * 5
    assert report_lengths(p_stop, 0.0).tolist() == [1, 1, 1, 1, 2]


@pytest.mark.parametrize("favourite", [PAD, START, UNKNOWN])
def test_special_words_are_never_written(
    model: HierarchicalModel, images: Tensor, favourite: int
) -> None:
    with torch.no_grad():
        model.word_lstm.w_out.weight[favourite] = 0
    h = torch.randn(100, 9, dtype=torch.float64)
    # Raise the favourite's logit above all others whatever the state is.
    model.word_lstm.w_out.register_forward_hook(
        lambda _, __, logits: logits.index_fill(1, torch.tensor([favourite]), 1e6)
    )
    assert (model.word_lstm.w_out(h).argmax(dim=1) == favourite).all()
    written = as_lists(generate(model, images, SETTINGS))
    words = {word for report in written for ids in report for word in ids}
    assert words
    assert min(words) >= len(SPECIAL)


def test_a_sentence_has_max_words_at_most_and_ends_at_its_end(
    model: HierarchicalModel, images: Tensor
) -> None:
    topics = model.read(images, sentences=4).topics.detach().flatten(0, 1)
    whole = write_sentences(model.word_lstm, topics, max_words=8)
    assert whole.shape == (48, 8)
    for cut in (1, 3):
        assert torch.equal(write_sentences(model.word_lstm, topics, cut), whole[:, :cut])
    for ids in whole.tolist():
        first = ids.index(PAD) if PAD in ids else len(ids)
        assert set(ids[first:]) <= {PAD}
        assert END not in ids


def test_no_topics_make_no_sentences(model: HierarchicalModel) -> None:
    topics = torch.zeros(0, 7, dtype=torch.float64)
    assert write_sentences(model.word_lstm, topics, 3).shape == (0, 3)


def test_reports_in_words() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    generated = Generated(
        topics=Topics(**{f.name: logits for f in fields(Topics)}),
        stop_probability=torch.tensor([[0.1, 0.2, 0.9, 0.9]]),
        lengths=torch.tensor([3]),
        words=torch.tensor([[[4, 5], [PAD, PAD], [6, PAD], [4, 4]]]),
    )
    (report,) = generated.reports(Vocabulary(("a", "b", "c"), ("heart", "lung", "rib")))
    assert report.sentences == ["a b", "", "c"]
    assert report.text == "a b c"
    total = 1 + 2.718281828459045**2 + 2.718281828459045
    assert [tag for tag, _ in report.tags] == ["lung", "rib", "heart"]
    expected = [2.718281828459045**z / total for z in (2, 1, 0)]
    assert [p for _, p in report.tags] == pytest.approx(expected, rel=1e-6)
