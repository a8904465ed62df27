"""Systems that read several images of a study, against themselves with fewer images or one."""

import pytest
import torch
from torch import Tensor

from raymed.generation import add_attention, generate
from raymed.image_tensors import StudyImages, map_tensors
from raymed.model.side_by_side import SideBySide, seeds_of_images
from raymed.model.system import Outputs, System
from raymed.model.systems import SYSTEMS, system_class
from raymed.sections import GenerationConfig
from raymed.tokens import END, PAD, START
from raymed.training.sampling import roll_out
from tests.support.splitmix import draws
from tests.support.tiny_systems import build_tiny

MOST, WORDS = 3, 11
PICTURES = torch.randint(0, 256, (6, 16, 16), generator=torch.Generator().manual_seed(1)).to(
    torch.uint8
)
COUNTS = [2, 1, 3]
SEEDS = torch.tensor([5, 9, 2**40])
REPORTS = torch.tensor(
    [
        [[START, 4, 5, END], [START, 6, END, PAD]],
        [[START, 7, END, PAD], [PAD, PAD, PAD, PAD]],
        [[START, 5, 8, END], [START, 9, 10, END]],
    ]
)
SETTINGS = GenerationConfig(max_sentences=3, max_words=5)


def study_images(pictures: Tensor, counts: list[int], most: int) -> StudyImages:
    return StudyImages.of(pictures, torch.tensor(counts), most)


def of_studies() -> list[Tensor]:
    return list(PICTURES.split(COUNTS))


def run(model: System, images: object, reports: Tensor, seeds: Tensor | None) -> Outputs:
    outputs: Outputs = model(images, model.passages(reports), seeds)
    return outputs


def penalty(outputs: Outputs) -> Tensor:
    found = outputs.attention_penalty
    return torch.zeros(len(outputs.tag_logits)).double() if found is None else found


def copied(model: System, system: str, most: int) -> System:
    """The same system for fewer images of a study; 1: for single images."""
    fewer = build_tiny(system, WORDS, images_per_study=most)
    weights = model.state_dict()
    own = fewer.state_dict()
    positions = "side_by_side.positions"
    if positions in own:
        weights[positions] = weights[positions][:most]
    fewer.load_state_dict({name: weights[name] for name in own})
    return fewer.train(model.training)


def build(system: str, *, positions: bool = True) -> System:
    model = build_tiny(system, WORDS, images_per_study=MOST)
    assert model.side_by_side is not None
    if model.side_by_side.positions is not None and not positions:
        with torch.no_grad():
            model.side_by_side.positions.zero_()
    return model


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("dropout", [False, True])
def test_missing_images_change_nothing(system: str, dropout: bool) -> None:
    """A study in a batch is as it is alone, without places for images that it has not."""
    model = build(system)
    seeds = SEEDS if dropout else None
    together = run(model, study_images(PICTURES, COUNTS, MOST), REPORTS, seeds)
    words = together.words
    for study, pictures in enumerate(of_studies()):
        count = len(pictures)
        if count == 1:
            # With two places, of which one is empty: what one image is alone has its own test.
            count = 2
        own = slice(study, study + 1)
        report = REPORTS[own, : int((REPORTS[study, :, 0] == START).sum())]
        images = study_images(pictures, [len(pictures)], count)
        alone = run(copied(model, system, count), images, report, seeds[own] if dropout else None)
        torch.testing.assert_close(together.tag_logits[own], alone.tag_logits)
        torch.testing.assert_close(penalty(together)[own], penalty(alone))
        if words is None:
            continue
        assert alone.words is not None
        torch.testing.assert_close(words.logits[words.images == study], alone.words.logits)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_study_of_one_image_is_that_image(system: str) -> None:
    model = build(system, positions=False)
    images = study_images(PICTURES[:3], [1, 1, 1], MOST)
    studies, single = (
        run(model, images, REPORTS, None),
        run(copied(model, system, 1), PICTURES[:3], REPORTS, None),
    )
    torch.testing.assert_close(studies.tag_logits, single.tag_logits)
    torch.testing.assert_close(penalty(studies), penalty(single))
    if single.words is not None:
        assert studies.words is not None
        torch.testing.assert_close(studies.words.logits, single.words.logits)


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_same_image_twice_is_that_image(system: str) -> None:
    """Each of two equal regions gets half of the attention, so that the report is the same."""
    model = build(system, positions=False).eval()
    single = copied(model, system, 1)
    assert not any("side_by_side" in name for name in single.state_dict())
    twice = study_images(PICTURES[:3].repeat_interleave(2, dim=0), [2, 2, 2], MOST)
    ours, theirs = (
        add_attention(each, generate(each, images, SETTINGS))
        for each, images in ((model, twice), (single, PICTURES[:3]))
    )
    assert ours.sentences == theirs.sentences
    if model.writer is not None:
        sampled = [
            roll_out(each, images, SEEDS, SETTINGS)
            for each, images in ((model, twice), (single, PICTURES[:3]))
        ]
        assert torch.equal(*sampled)
    torch.testing.assert_close(ours.reading.tag_logits, theirs.reading.tag_logits)
    if theirs.reading.alpha is None:
        assert ours.reading.alpha is None
        return
    for number in range(3):
        of_study, of_image = ours.reading.alpha_of(number), theirs.reading.alpha_of(number)
        assert of_study is not None
        assert of_image is not None
        first, second = of_study.chunk(2, dim=1)
        torch.testing.assert_close(first, of_image / 2)
        torch.testing.assert_close(second, of_image / 2)
        assert (ours.reading.alpha[number][:, 2 * of_image.shape[1] :] == 0).all()


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_position_is_learned_where_regions_are_attended_to(system: str) -> None:
    model = build(system)
    images = study_images(PICTURES, COUNTS, MOST)
    outputs = run(model, images, REPORTS, None)
    assert model.side_by_side is not None
    positions = model.side_by_side.positions
    assert (positions is not None) == system_class(system).visual
    if positions is not None:
        assert outputs.words is not None
        outputs.words.logits.square().sum().backward()
        assert positions.grad is not None
        assert (positions.grad.abs().sum(dim=1) > 0).all()


def test_features_are_as_good_as_pixels() -> None:
    model = build("co_attention").eval()
    images = study_images(PICTURES, COUNTS, MOST)
    assert model.encoder is not None
    cached = images.with_images(model.encoder(PICTURES))
    ours, theirs = (run(model, each, REPORTS, None) for each in (cached, images))
    assert ours.words is not None
    assert theirs.words is not None
    torch.testing.assert_close(ours.words.logits, theirs.words.logits)
    copy = map_tensors(cached, Tensor.clone)
    assert isinstance(copy, StudyImages)
    assert isinstance(copy.images, tuple)
    assert all(map(torch.equal, copy.images, cached.images))
    assert torch.equal(copy.places, cached.places)


def test_side_by_side_in_plain_loops() -> None:
    random = torch.Generator().manual_seed(3)
    v, f, positions = (
        torch.randn(*size, generator=random, dtype=torch.float64)
        for size in ((6, 4, 5), (6, 7), (MOST, 5))
    )
    layer = SideBySide(MOST, 5)
    layer.load_state_dict({"positions": positions})
    found = layer.double()(v, f, study_images(PICTURES, COUNTS, MOST))
    image = 0
    for study, count in enumerate(COUNTS):
        mean = sum(f[image + place] for place in range(count)) / count
        torch.testing.assert_close(found[1][study], mean)
        for place in range(MOST):
            for n in range(4):
                region = 4 * place + n
                present = place < count
                assert found[2][study, region] == present
                expected = v[image + place, n] + positions[place] if present else torch.zeros(5)
                torch.testing.assert_close(found[0][study, region], expected.double())
        image += count


def test_each_image_has_a_seed_of_its_own_that_depends_on_its_study_alone() -> None:
    images = study_images(PICTURES, COUNTS, MOST)
    found = seeds_of_images(SEEDS, images)
    assert found is not None
    expected = [
        int(draws(seed - 2, count)[place] * 2**53)
        for seed, count in zip(SEEDS.tolist(), COUNTS, strict=True)
        for place in range(count)
    ]
    assert found.tolist() == expected
    assert len(set(expected)) == 6
    assert seeds_of_images(None, images) is None
