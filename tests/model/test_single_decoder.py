"""The report as one sequence, and a sentence's attention, against plain lists."""

import random

import pytest
import torch
from torch import Tensor

from raymed.model.encoder import build_encoder
from raymed.model.single_decoder import SingleDecoder, as_sequences
from raymed.model.systems import build_system
from raymed.sections import ModelConfig
from raymed.tokens import END, PAD, START, UNKNOWN
from tests.support.passages import passages_of

TAGS, WORDS, TOP = 6, 11, 3

Report = list[list[int]]


def tensor_of(reports: list[Report]) -> Tensor:
    """[B, S, T + 2] of sentences that bring their own START and, if not cut, END."""
    sentences = max(map(len, reports))
    width = max(len(ids) for report in reports for ids in report)
    filled = [
        [*([*ids, *[PAD] * (width - len(ids))] for ids in report)]
        + [[PAD] * width] * (sentences - len(report))
        for report in reports
    ]
    return torch.tensor(filled)


def one_sequence(report: Report) -> list[int]:
    joined = [word for ids in report for word in ids if word != END]
    return [*joined, END] if report[-1][-1] == END else joined


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ([[START, 7, END]], [START, 7, END]),
        ([[START, 7, END], [START, 8, 9, END]], [START, 7, START, 8, 9, END]),
        # A sentence that was cut, before another and at the end.
        ([[START, 7, 8, 9], [START, 5, END]], [START, 7, 8, 9, START, 5, END]),
        ([[START, 5, END], [START, 7, 8, 9]], [START, 5, START, 7, 8, 9]),
        ([[START, 7, 8, 9]], [START, 7, 8, 9]),
        # Sentences without a word.
        ([[START, END]], [START, END]),
        ([[START, END], [START, END]], [START, START, END]),
        ([[START, 4, END], [START, END], [START, UNKNOWN, END]], [1, 4, 1, 1, UNKNOWN, END]),
    ],
)
def test_a_report_as_one_sequence(report: Report, expected: list[int]) -> None:
    assert as_sequences(tensor_of([report])).tolist() == [expected]
    padded = torch.nn.functional.pad(tensor_of([report]), (0, 2, 0, 3), value=PAD)
    assert as_sequences(padded).tolist() == [expected]


def test_sequences_of_a_batch_are_padded_to_the_longest() -> None:
    draw = random.Random(0)
    reports = []
    for _ in range(40):
        report = []
        for _ in range(draw.randint(1, 5)):
            words = [draw.randint(3, 9) for _ in range(draw.randint(0, 6))]
            whole = not words or draw.random() < 0.7
            report.append([START, *words, *([END] if whole else [])])
        reports.append(report)
    expected = [one_sequence(report) for report in reports]
    longest = max(map(len, expected))
    found = as_sequences(tensor_of(reports)).tolist()
    assert found == [[*ids, *[PAD] * (longest - len(ids))] for ids in expected]


@pytest.mark.parametrize("system", ["soft_att", "att_rk"])
def test_a_sentences_attention_is_the_mean_over_its_words(system: str) -> None:
    torch.manual_seed(2)
    config = ModelConfig(
        system=system, encoder="small", hidden_size=6, embedding_size=5, top_tags=TOP
    )
    encoder = build_encoder(config.encoder, dropout=config.dropout)
    model = build_system(config, TAGS, WORDS, encoder).double().eval()
    assert isinstance(model, SingleDecoder)
    with torch.no_grad():
        for p in (*model.writer.parameters(), *model.tag_classifier.output.parameters()):
            p.normal_(std=3 / p.shape[-1] ** 0.5)
    images = torch.randint(0, 256, (3, 24, 24)).byte()
    reports = [
        [[START, 4, 5, END], [START, 6, END], [START, 7, 8, 9, END]],
        [[START, END], [START, 10, END]],
        [[START, 9, 6, END], [START, END]],
    ]
    reading = model.read(images, sentences=3)
    assert (reading.alpha, reading.beta) == (None, None)
    found = model.add_attention(reading, model.passages(tensor_of(reports)))
    for image, report in enumerate(reports):
        # Alone, so that no padding is involved.
        context = tuple(each[image] for each in reading.context)
        written = model.writer(context, passages_of(torch.tensor([one_sequence(report)])))
        place = 0
        for number, ids in enumerate(report):
            # A distribution for each of the sentence's words and for what ends it.
            places = range(place, place + len(ids) - 1)
            place = places.stop
            for ours, of_words in ((found.alpha, written.alpha), (found.beta, written.beta)):
                assert (ours is None) == (of_words is None)
                if of_words is None:
                    continue
                rows = [of_words[0, p].tolist() for p in places]
                mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
                assert ours[image, number].tolist() == pytest.approx(mean, abs=1e-12)
                assert ours[image, number].sum().item() == pytest.approx(1, abs=1e-12)
        assert place == len(one_sequence(report)) - 1
        for attention in (found.alpha, found.beta):
            if attention is not None:
                assert (attention[image, len(report) :] == 0).all()
    assert found.tag_ids is reading.tag_ids
    widths = [None if each is None else each.shape[2] for each in (found.alpha, found.beta)]
    # 24 pixels make 3 x 3 regions; soft_att gives weights to these, att_rk to tags.
    assert widths == ([9, None] if system == "soft_att" else [None, TOP])
