"""Sampled and greedy reports, against enumerated probabilities and against generation."""

import itertools
from collections import Counter

import pytest
import torch
from torch import Tensor

from raymed.generation import generate
from raymed.model.system import System
from raymed.model.systems import SYSTEMS
from raymed.sections import GenerationConfig
from raymed.tokens import END, PAD, SPECIAL, START
from raymed.training.sampling import GREEDY, SAMPLED, roll_out
from tests.support.tiny_systems import IMAGES, build_tiny

WRITING = [name for name in SYSTEMS if name != "vgg19_tags"]


def passages_of(words: Tensor) -> list[list[list[int]]]:
    """The word ids of each report's passages, [B][P][words and END]."""
    return [
        [[word for word in passage if word != PAD] for passage in report if passage[0] != PAD]
        for report in words.tolist()
    ]


@pytest.mark.parametrize("system", WRITING)
def test_the_greedy_report_is_that_of_generation(system: str) -> None:
    model = build_tiny(system, words=9).eval()
    settings = GenerationConfig(max_sentences=4, max_words=5, stop_threshold=0.4)
    words = roll_out(model, IMAGES, torch.arange(len(IMAGES)), settings)
    expected = generate(model, IMAGES, settings).sentences
    if model.read(IMAGES, 1).stop_logits is None:
        for (passage,), sentences in zip(passages_of(words[GREEDY]), expected, strict=True):
            joined = list(itertools.chain(*([START, *ids] for ids in sentences)))[1:]
            assert [word for word in passage if word != END][: len(joined)] == joined
        return
    found = [[[w for w in ids if w != END] for ids in r] for r in passages_of(words[GREEDY])]
    assert found == expected


def probabilities(model: System, settings: GenerationConfig) -> dict[str, float]:
    """The probability of each report of the first image, from one step at a time."""
    image = IMAGES[:1]
    reading = model.read(image, settings.max_sentences)
    planned = reading.stop_logits is not None
    limit = settings.max_words if planned else 2 * (settings.max_words + 1) - 1

    def passages(number: int) -> list[tuple[tuple[int, ...], float]]:
        context = tuple(each[:, number] for each in reading.context)
        unfinished = [((), 1.0, model.writer.initial_state(context), START)]
        whole = []
        for _ in range(limit):
            longer = []
            for ids, p, state, last in unfinished:
                logits, after = model.writer.step(torch.tensor([last]), state, context)
                chances = logits[0].exp()
                chances[list(model.writer.forbidden_ids)] = 0
                for word, chance in enumerate((chances / chances.sum()).tolist()):
                    if chance:
                        here = ((*ids, word), p * chance, after, word)
                        whole.append(here[:2]) if word == END else longer.append(here)
            unfinished = longer
        return [*whole, *(each[:2] for each in unfinished)]

    if not planned:
        return {str([[*ids]]): p for ids, p in passages(0)}
    first, second = passages(0), passages(1)
    continues, stops = reading.stop_logits[0, 0].exp().tolist()
    p_stop = stops / (stops + continues)
    found = {str([[*ids]]): p * p_stop for ids, p in first}
    for (one, p), (two, q) in itertools.product(first, second):
        found[str([[*one], [*two]])] = p * q * (1 - p_stop)
    return found


@pytest.mark.parametrize("system", ["co_attention", "lrcn"])
@torch.no_grad()
def test_sampled_reports_follow_the_models_probabilities(system: str) -> None:
    """All reports of two words, of up to two sentences of up to two words."""
    model = build_tiny(system, words=len(SPECIAL) + 2)
    settings = GenerationConfig(max_sentences=2, max_words=2)
    expected = probabilities(model, settings)
    assert sum(expected.values()) == pytest.approx(1)
    assert len(expected) > 20
    count = 20_000
    images = IMAGES[:1].expand(count, -1, -1)
    words = roll_out(model, images, torch.arange(count) * 7919, settings)
    found = Counter(map(str, passages_of(words[SAMPLED])))
    assert found.keys() <= expected.keys()
    for report, p in expected.items():
        # Four and a half standard deviations of a binomial, and room for the rarest.
        assert abs(found[report] - count * p) < 4.5 * (count * p * (1 - p)) ** 0.5 + 3, report
    # Every passage and stop draws its own numbers: with shared ones few reports would occur.
    likely = [report for report, p in expected.items() if p * count > 12]
    assert len(likely) > 10
    assert set(likely) <= found.keys()


@pytest.mark.parametrize("system", ["co_attention", "att_rk"])
def test_a_report_depends_on_its_own_seed_and_image_alone(system: str) -> None:
    model = build_tiny(system, words=9)
    settings = GenerationConfig(max_sentences=3, max_words=4)
    seeds = torch.tensor([3, 2**61 + 5, 4])
    whole = roll_out(model, IMAGES, seeds, settings)
    torch.manual_seed(5)
    for i in range(len(IMAGES)):
        alone = roll_out(model, IMAGES[i : i + 1], seeds[i : i + 1], settings)
        assert torch.equal(alone, whole[:, i : i + 1])
    other = roll_out(model, IMAGES, seeds + 1, settings)
    assert torch.equal(other[GREEDY], whole[GREEDY])
    assert not torch.equal(other[SAMPLED], whole[SAMPLED])
