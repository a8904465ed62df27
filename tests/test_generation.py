import math
from dataclasses import replace
from itertools import groupby

import pytest
import torch
from torch import Tensor

from raymed.data.vocabulary import Vocabulary
from raymed.generation import (
    Generated,
    add_attention,
    find_semantic_features,
    generate,
    override_top_tags,
    report_lengths,
)
from raymed.model.encoder import build_encoder
from raymed.model.hierarchical import Hierarchical
from raymed.model.single_decoder import SingleDecoder
from raymed.model.system import Reading, System
from raymed.model.systems import SYSTEMS, build_system
from raymed.sections import GenerationConfig, ModelConfig
from raymed.tokens import END, PAD, SPECIAL, START, UNKNOWN
from tests.support.passages import passages_of

WORDS, TAGS = 14, 6
SETTINGS = GenerationConfig(stop_threshold=0.5, max_sentences=5, max_words=8)
# Of weights with which images get reports, and reports sentences, of several lengths.
SEEDS = {
    "att_rk": 33,
    "cnn_rnn": 79,
    "co_attention": 11,
    "lrcn": 7,
    "no_attention": 6,
    "semantic_only": 89,
    "soft_att": 8,
    "transformer": 16,
    "vgg19_tags": 0,
    "visual_only": 5,
}
WRITING = [name for name in SYSTEMS if name != "vgg19_tags"]

Report = list[list[int]]


def build(system: str, top_tags: int = 3) -> System:
    """Weights so wide that sentences, lengths and stops differ between images."""
    torch.manual_seed(SEEDS[system])
    # Each of the transformer's eight heads has the same share of the width.
    width = 8 if system == "transformer" else 9
    config = ModelConfig(
        system=system, encoder="small", hidden_size=width, embedding_size=7, top_tags=top_tags
    )
    encoder = build_encoder(config.encoder, dropout=config.dropout)
    model = build_system(config, TAGS, WORDS, encoder).double().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.startswith("encoder.convolutions."):
                p.normal_(std=3 / p.shape[-1] ** 0.5)
        if isinstance(model, Hierarchical):
            # Else most sentences run in circles until they are cut.
            model.writer.w_out.weight[END] *= 3
    return model


@pytest.fixture
def model() -> Hierarchical:
    model = build("co_attention")
    assert isinstance(model, Hierarchical)
    return model


@pytest.fixture
def images() -> Tensor:
    """Four plain squares each, so that the images differ more than noise does."""
    squares = torch.randint(0, 256, (12, 2, 2), generator=torch.Generator().manual_seed(0))
    return squares.to(torch.uint8).repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)


def passage(model: System, context: tuple[Tensor, ...], limit: int, never: set[int]) -> list[int]:
    """One most probable word after the other, with the whole prefix read again for each."""
    words: list[int] = []
    while len(words) < limit:
        # A word has to stand behind the prefix for its logits to be given: any but PAD.
        logits = model.writer(context, passages_of(torch.tensor([[START, *words, END]]))).logits[-1]
        ranked = logits.argsort(descending=True).tolist()
        best = next(word for word in ranked if word not in never)
        if best == END:
            break
        words.append(best)
    return words


@torch.no_grad()
def write_one_by_one(model: System, image: Tensor, threshold: float) -> Report:
    """The report of one image, passage by passage."""
    if isinstance(model, SingleDecoder):
        context = tuple(each[:, 0] for each in model.read(image.unsqueeze(0), 1).context)
        # Room for five sentences of eight words and for what stands between them.
        words = passage(model, context, 5 * 8 + 4, {PAD, UNKNOWN})
        report: Report = [[]]
        for word in words:
            if word == START:
                report.append([])
            else:
                report[-1].append(word)
        return report[: SETTINGS.max_sentences]
    sentences: Report = []
    while len(sentences) < SETTINGS.max_sentences:
        reading = model.read(image.unsqueeze(0), sentences=len(sentences) + 1)
        context = tuple(each[:, -1] for each in reading.context)
        never = {PAD, START, UNKNOWN}
        sentences.append(passage(model, context, SETTINGS.max_words, never))
        p_continue, p_stop = reading.stop_logits[0, -1].exp().tolist()
        if p_stop / (p_continue + p_stop) > threshold:
            break
    return sentences


def stop_probability(generated: Generated) -> Tensor:
    return generated.reading.stop_logits.softmax(dim=2)[:, :, 1]


def settings_that_stop(model: System, images: Tensor, share: float) -> GenerationConfig:
    """With a threshold that exceeds about this share of all sentences' p(STOP)."""
    generated = generate(model, images, SETTINGS)
    if generated.reading.stop_logits is None:
        return SETTINGS
    p_stop = stop_probability(generated).flatten().sort().values
    middle = int(share * len(p_stop))
    # In the widest gap near there: no rounding can push a sentence over the threshold.
    near = range(middle - 5, middle + 5)
    gap = max(near, key=lambda i: float(p_stop[i + 1] - p_stop[i]))
    threshold = float(p_stop[gap : gap + 2].mean())
    return SETTINGS.model_copy(update={"stop_threshold": threshold})


@pytest.mark.parametrize(
    ("system", "share"),
    [(system, 0.5) for system in WRITING] + [("co_attention", 0.1), ("co_attention", 0.9)],
)
def test_batched_equals_one_passage_at_a_time(system: str, share: float, images: Tensor) -> None:
    model = build(system)
    settings = settings_that_stop(model, images, share)
    written = generate(model, images, settings).sentences
    assert written == [write_one_by_one(model, image, settings.stop_threshold) for image in images]
    # The case is worth its name: reports and sentences of several lengths.
    if share == 0.5:
        assert len({len(report) for report in written}) > 1
        assert len({len(ids) for report in written for ids in report}) > 1


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("system", WRITING)
def test_a_report_does_not_depend_on_its_batch(system: str, width: int, images: Tensor) -> None:
    model = build(system)
    settings = SETTINGS.model_copy(update={"beam_width": width, "block_ngrams": 3})
    written = generate(model, images, settings).sentences
    assert len(set(map(str, written))) > 2
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    shuffled = generate(model, images[order], settings).sentences
    assert shuffled == [written[i] for i in order]
    for i in range(len(images)):
        assert generate(model, images[i : i + 1], settings).sentences == [written[i]]


def test_nothing_is_generated_after_the_stop(model: Hierarchical, images: Tensor) -> None:
    settings = settings_that_stop(model, images, 0.5)
    generated = generate(model, images, settings)
    lengths = [len(sentences) for sentences in generated.sentences]
    for p_stop, length in zip(stop_probability(generated).tolist(), lengths, strict=True):
        assert all(p <= settings.stop_threshold for p in p_stop[: length - 1])
        assert length == SETTINGS.max_sentences or p_stop[length - 1] > settings.stop_threshold
    assert min(lengths) < SETTINGS.max_sentences


def test_report_lengths() -> None:
    p_stop = torch.tensor(
        [[0.9, 0.1, 0.9], [0.1, 0.6, 0.9], [0.1, 0.2, 0.3], [0.5, 0.5, 0.51], [0.0, 1.0, 0.0]]
    )
    assert report_lengths(p_stop, 0.5).tolist() == [1, 2, 3, 3, 2]
    # Nothing is above 1, everything that is not 0 is above 0.
    assert report_lengths(p_stop, 1.0).tolist() == [3] * 5
    assert report_lengths(p_stop, 0.0).tolist() == [1, 1, 1, 1, 2]


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("system", ["co_attention", "no_attention", "semantic_only", "visual_only"])
def test_one_generation_gives_the_reports_at_every_threshold(
    system: str, width: int, images: Tensor
) -> None:
    model = build(system)
    settings = SETTINGS.model_copy(update={"beam_width": width})

    def at(threshold: float) -> Generated:
        return generate(model, images, settings.model_copy(update={"stop_threshold": threshold}))

    longest = at(0.95)
    cuts = set()
    for threshold in [step / 20 for step in range(20)]:
        lengths = longest.lengths(threshold)
        cut = [report[:n] for report, n in zip(longest.sentences, lengths, strict=True)]
        assert cut == at(threshold).sentences
        cuts.add(str(lengths))
    assert len(cuts) > 3
    with pytest.raises(AssertionError):
        at(0.0).lengths(0.95)


@pytest.mark.parametrize("system", ["att_rk", "cnn_rnn", "vgg19_tags"])
def test_a_threshold_does_not_end_a_report_that_its_words_end(system: str, images: Tensor) -> None:
    generated = generate(build(system), images, SETTINGS)
    for threshold in (0.0, 1.0):
        assert generated.lengths(threshold) == [len(report) for report in generated.sentences]


@pytest.mark.parametrize("system", ["att_rk", "co_attention", "semantic_only"])
def test_overriding_m_equals_a_model_built_with_it(system: str, images: Tensor) -> None:
    model = build(system)
    before = generate(model, images, SETTINGS).sentences
    for top in (1, 2, TAGS):
        other = build(system, top_tags=top)
        with override_top_tags(model, top):
            written = generate(model, images, SETTINGS)
        assert written.sentences == generate(other, images, SETTINGS).sentences
        assert written.sentences != before
        assert written.reading.tag_ids is not None
        assert written.reading.tag_ids.shape == (len(images), top)
    with pytest.raises(KeyError), override_top_tags(model, 1):
        raise KeyError
    assert generate(model, images, SETTINGS).sentences == before


def test_a_system_that_attends_to_no_tags_has_no_m(images: Tensor) -> None:
    model = build("visual_only")
    assert find_semantic_features(model) is None
    with override_top_tags(model, 1):
        written = generate(model, images, SETTINGS).sentences
    assert written == generate(model, images, SETTINGS).sentences


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("favourite", [PAD, START, UNKNOWN])
@pytest.mark.parametrize("system", ["co_attention", "lrcn"])
def test_special_words_are_never_generated(
    system: str, favourite: int, width: int, images: Tensor
) -> None:
    model = build(system)
    settings = SETTINGS.model_copy(update={"beam_width": width})
    # Raise the favourite's logit above all others whatever the state is.
    model.writer.w_out.register_forward_hook(
        lambda _, __, logits: logits.index_fill(1, torch.tensor([favourite]), 1e6)
    )
    h = torch.randn(100, 9, dtype=torch.float64)
    assert (model.writer.w_out(h).argmax(dim=1) == favourite).all()
    written = generate(model, images, settings).sentences
    words = {word for report in written for ids in report for word in ids}
    if (system, favourite) == ("lrcn", START):
        # To a report's writer START is the end of a sentence, here of each without a word.
        assert written == [[[]] * SETTINGS.max_sentences] * len(images)
    else:
        assert words
        assert min(words) >= len(SPECIAL)


@pytest.mark.parametrize("system", WRITING)
def test_a_report_stays_within_its_limits(system: str, images: Tensor) -> None:
    model = build(system)
    for sentences, words in ((1, 1), (2, 3), (3, 12)):
        limits = {"max_sentences": sentences, "max_words": words, "stop_threshold": 1.0}
        written = generate(model, images, SETTINGS.model_copy(update=limits)).sentences
        lengths = [len(ids) for report in written for ids in report]
        assert all(len(report) <= sentences for report in written)
        assert all(END not in ids and PAD not in ids for report in written for ids in report)
        if isinstance(model, Hierarchical):
            assert {len(report) for report in written} == {sentences}
            assert max(lengths) <= words
        else:
            # Between two sentences stands a START, and no sentence has a limit of its own.
            assert all(
                sum(len(ids) + 1 for ids in report) <= sentences * (words + 1) for report in written
            )
    assert max(lengths) > 1


@torch.no_grad()
@pytest.mark.parametrize("system", ["soft_att", "att_rk", "transformer"])
def test_attention_of_generated_reports(system: str, images: Tensor) -> None:
    """Each sentence's is the mean over its words, each attending before it is written."""
    model = build(system)
    generated = generate(model, images, SETTINGS)
    found = add_attention(model, generated)
    assert found.sentences == generated.sentences
    name, width = ("beta", 3) if system == "att_rk" else ("alpha", 4)
    attention = getattr(found.reading, name)
    longest = max(map(len, generated.sentences))
    assert attention.shape == (len(images), longest, width)
    assert (found.reading.alpha is None) != (found.reading.beta is None)
    for image, sentences in enumerate(generated.sentences):
        words = [word for ids in sentences for word in [START, *ids]]
        passages = [*words, END]
        context = tuple(each[image].clone() for each in generated.reading.context)
        rows = getattr(model.writer(context, passages_of(torch.tensor([passages]))), name)[
            0
        ].tolist()
        # Words by the number of STARTs before them; a START is read with what comes after it.
        numbers = [passages[: place + 1].count(START) - 1 for place in range(len(rows))]
        for number, group in groupby(range(len(rows)), key=lambda place: numbers[place]):
            of_words = [rows[place] for place in group]
            assert len(of_words) == len(sentences[number]) + 1
            mean = [sum(column) / len(of_words) for column in zip(*of_words, strict=True)]
            assert attention[image, number].tolist() == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize("system", WRITING)
def test_attention_is_added_only_where_a_system_attends(system: str, images: Tensor) -> None:
    model = build(system)
    generated = generate(model, images, SETTINGS)
    assert any(generated.sentences[1:])
    # A report of no words may stand beside others.
    generated = replace(generated, sentences=[[], *generated.sentences[1:]])
    reading, before = add_attention(model, generated).reading, generated.reading
    visual = ("co_attention", "visual_only", "soft_att", "transformer")
    assert (reading.alpha is not None) == (system in visual)
    assert (reading.beta is not None) == (system in ("co_attention", "semantic_only", "att_rk"))
    if isinstance(model, Hierarchical):
        assert reading is before
    assert reading.tag_logits is before.tag_logits
    assert reading.tag_ids is before.tag_ids


def test_a_system_of_tags_alone_generates_nothing(images: Tensor) -> None:
    model = build("vgg19_tags")
    generated = generate(model, images, SETTINGS)
    assert generated.sentences == [[]] * len(images)
    assert add_attention(model, generated) is generated
    words = Vocabulary(tuple("abcdefghij"), tuple("uvwxyz"))
    for report, logits in zip(
        generated.reports(words), generated.reading.tag_logits.tolist(), strict=True
    ):
        assert (report.sentences, report.text) == ([], "")
        best = max(range(TAGS), key=lambda tag: logits[tag])
        assert report.tags[0][0] == "uvwxyz"[best]


def test_reports_in_words() -> None:
    generated = Generated(
        reading=Reading(tag_logits=torch.tensor([[0.0, 2.0, 1.0]])),
        sentences=[[[4, 5], [], [6]]],
    )
    (report,) = generated.reports(Vocabulary(("a", "b", "c"), ("heart", "lung", "rib")))
    assert report.sentences == ["a b", "", "c"]
    assert report.text == "a b c"
    assert [tag for tag, _ in report.tags] == ["lung", "rib", "heart"]
    expected = [math.exp(z) / (1 + math.exp(2) + math.exp(1)) for z in (2, 1, 0)]
    assert [p for _, p in report.tags] == pytest.approx(expected, rel=1e-6)
