"""Attention scores against plain loops over pixels, and on runs with every kind of attention."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.data.examples import Finding
from raymed.data.sources.phantom import draw
from raymed.errors import UsageError
from raymed.generation import generate
from raymed.launch.run import run_training
from raymed.localisation import (
    ATTENTION_FILE,
    AttentionScores,
    attention_scores,
    covered,
    measure_attention,
)
from raymed.reports.attended import AttendedSentence
from raymed.tokens import END, START
from raymed.training.checkpoint import Checkpoint, latest
from tests.support.prepared import prepare_examples

PIXELS = 6
"""To a side of a region, where boxes are drawn pixel by pixel."""
TAGS = ("left nodule", "right nodule", "effusion", "cardiomegaly")
SENTENCES = (
    ("there is a left nodule", ("left nodule",)),
    ("a right nodule and an effusion", ("right nodule", "effusion")),
    ("effusion", ("effusion",)),
    ("marked cardiomegaly", ("cardiomegaly",)),
    ("cardiomegaly is stable", ()),
    ("no effusion", ()),
    ("the lungs are clear", ()),
    ("effusions and nodules", ()),
    ("bones are intact", ()),
    ("", ()),
)
"""Each with the findings that it calls abnormal."""


def box(rng: np.random.Generator, tag: str, rows: int, columns: int) -> tuple[Finding, np.ndarray]:
    """A finding of whole pixels somewhere in a grid, and its pixels."""
    height, width = rows * PIXELS, columns * PIXELS
    top, bottom = np.sort(rng.choice(height + 1, 2, replace=False)).tolist()
    left, right = np.sort(rng.choice(width + 1, 2, replace=False)).tolist()
    pixels = np.zeros((height, width), dtype=bool)
    pixels[top:bottom, left:right] = True
    return Finding(tag, left / width, top / height, right / width, bottom / height), pixels


def regions_of(pixels: np.ndarray) -> list[list[bool]]:
    """Which regions a set pixel lies in."""
    rows, columns = (size // PIXELS for size in pixels.shape)
    return [
        [
            bool(pixels[r * PIXELS : (r + 1) * PIXELS, c * PIXELS : (c + 1) * PIXELS].any())
            for c in range(columns)
        ]
        for r in range(rows)
    ]


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (3, 7), (14, 14), (49, 10)])
def test_covered_regions_overlap_the_drawn_box(grid: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(grid))
    for _ in range(50):
        finding, pixels = box(rng, "nodule", *grid)
        assert covered(finding, grid).tolist() == regions_of(pixels)


def test_a_box_that_ends_where_a_region_begins_does_not_cover_it() -> None:
    for size in range(1, 60):
        for cell in range(size):
            edges = cell / size, (cell + 1) / size
            finding = Finding("nodule", edges[0], edges[0], edges[1], edges[1])
            assert np.argwhere(covered(finding, (size, size))).tolist() == [[cell, cell]], size


def expected(
    reports: Sequence[Sequence[tuple[str, np.ndarray | None, list[tuple[str, float]]]]],
    present: Sequence[dict[str, list[list[bool]]]],
    named: dict[str, tuple[str, ...]],
) -> AttentionScores:
    """The scores in plain loops and fractions.

    Args:
        reports: of each image: sentence, alpha and its tags with their attention.
        present: of each image: a finding's tag and its regions.
        named: sentence -> the findings that it calls abnormal.
    """
    wrote = true = looked = tagged = 0
    region = tag = Fraction(0)
    chance, tag_chance = Fraction(0), Fraction(0)
    fixed: dict[tuple[int, int], int] = {}
    for sentences, findings in zip(reports, present, strict=True):
        for text, alpha, tags in sentences:
            if not named[text]:
                continue
            wrote += 1
            there = [name for name in named[text] if name in findings]
            if not there:
                continue
            true += 1
            if alpha is not None:
                looked += 1
                best, share, cells = (0, 0), -1.0, 0
                for r, row in enumerate(alpha.tolist()):
                    for c, value in enumerate(row):
                        on = any(findings[name][r][c] for name in there)
                        cells += on
                        fixed[r, c] = fixed.get((r, c), 0) + on
                        if value > share:
                            best, share = (r, c), value
                region += any(findings[name][best[0]][best[1]] for name in there)
                chance += Fraction(cells, alpha.size)
            if tags:
                tagged += 1
                strongest = sorted(tags, key=lambda pair: pair[1])[-1][0]
                tag += strongest in there
                tag_chance += Fraction(sum(name in there for name, _ in tags), len(tags))
    if not wrote:
        return AttentionScores(0)
    return AttentionScores(
        wrote,
        true / wrote,
        float(region / looked) if looked else None,
        float(chance / looked) if looked else None,
        max(fixed.values()) / looked if looked else None,
        float(tag / tagged) if tagged else None,
        float(tag_chance / tagged) if tagged else None,
    )


def assert_same(found: AttentionScores | None, wanted: AttentionScores) -> None:
    assert found is not None
    # Float sums of shares may differ from fractions in the last digit.
    assert asdict(found) == pytest.approx(asdict(wanted), abs=1e-12)


@pytest.mark.parametrize(("visual", "semantic"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_plain_loops(visual: bool, semantic: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    grid = int(rng.integers(1, 8)), int(rng.integers(1, 8))
    reports, plain, findings, present = [], [], [], []
    for _ in range(30):
        names = rng.permutation(TAGS)[: rng.integers(0, 4)].tolist()
        boxes = [box(rng, name, *grid) for name in names]
        findings.append([finding for finding, _ in boxes])
        present.append({one.tag: regions_of(pixels) for one, pixels in boxes})
        written = []
        for number in rng.integers(0, len(SENTENCES), size=rng.integers(0, 6)):
            alpha = rng.dirichlet(np.ones(grid[0] * grid[1])).reshape(grid) if visual else None
            attended = ["normal", *rng.permutation(TAGS)[:2].tolist()] if semantic else []
            beta = rng.dirichlet(np.ones(3)).tolist()[: len(attended)]
            pairs = list(zip(attended, beta, strict=True))
            written.append((SENTENCES[number][0], alpha, pairs))
        plain.append(written)
        reports.append(
            [
                AttendedSentence(text, None if alpha is None else alpha[None], pairs)
                for text, alpha, pairs in written
            ]
        )
    # Every finding is somewhere, so that what names it is known to name one.
    everywhere = np.ones((grid[0] * PIXELS, grid[1] * PIXELS), dtype=bool)
    findings.append([Finding(tag, 0, 0, 1, 1) for tag in TAGS])
    present.append({tag: regions_of(everywhere) for tag in TAGS})
    plain.append([])
    reports.append([])
    wanted = expected(plain, present, dict(SENTENCES))
    assert wanted.sentences > 5
    assert 0 < (wanted.right or 0) < 1
    assert_same(attention_scores(reports, findings), wanted)


NODULE = Finding("nodule", 0.0, 0.0, 0.5, 0.5)
CORNER = np.array([[[0.7, 0.1], [0.1, 0.1]]])


def test_what_cannot_be_measured_is_none() -> None:
    here = [[NODULE]]
    assert attention_scores([[]], here) == AttentionScores(0)
    assert attention_scores([[AttendedSentence("no nodule", CORNER, [])]], here).sentences == 0
    alone = AttendedSentence("a nodule", None, [])
    assert attention_scores([[alone]], here) == AttentionScores(1, right=1.0)
    # A finding that this image has not, but another.
    wrong = AttendedSentence("a nodule", CORNER, [("nodule", 1.0)])
    assert attention_scores([[wrong], []], [[], [NODULE]]) == AttentionScores(1, right=0.0)


def test_a_finding_of_two_places_counts_at_either() -> None:
    other = Finding("nodule", 0.5, 0.5, 1.0, 1.0)
    sentence = AttendedSentence("a nodule", CORNER[:, ::-1, ::-1], [("nodule", 0.2), ("mass", 0.8)])
    found = attention_scores([[sentence]], [[NODULE, other]])
    assert found == AttentionScores(1, 1.0, 1.0, 0.5, 1.0, 0.0, 0.5)


@pytest.fixture(scope="module")
def config(learner: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    """Of runs on films whose reports only name what is wrong, so that four epochs teach naming."""
    folder = tmp_path_factory.mktemp("attending")
    films = [
        replace(film, report=" ".join(f"There is a {one.tag}." for one in film.findings))
        for film in draw(40, image_size=32)
        if film.findings
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        prepare_examples(films, folder / "prepared", source="phantom", image_size=32)
        values = {"training.epochs": 4, "data.path": str(folder / "prepared")}
        yield learner.override(values | {"run.folder": str(folder), "data.validation_images": 1})


@torch.inference_mode()
def by_hand(
    checkpoint: Checkpoint, picture: np.ndarray
) -> list[tuple[str, np.ndarray | None, list[tuple[str, float]]]]:
    """One image's sentences with their attention; soft_att's is gathered word by word."""
    model = checkpoint.build_model()
    image = torch.from_numpy(picture)[None]
    written = generate(model, image, checkpoint.config.generation)
    reading, (ids,) = written.reading, written.sentences
    texts = [checkpoint.vocabulary.decode(words) for words in ids]
    alphas: list[np.ndarray | None] = [None] * len(ids)
    pairs: list[list[tuple[str, float]]] = [[] for _ in ids]
    if checkpoint.config.model.system == "soft_att":
        context = tuple(each[:, 0] for each in reading.context)
        state = model.writer.initial_state(context)
        for number, words in enumerate(ids):
            steps = []
            for word in [START, *words]:
                embedded = model.writer.embedding(torch.tensor([word]))
                _, alpha, state = model.writer._attend(embedded, state, context)
                steps.append(alpha[0].numpy())
            alphas[number] = np.mean(steps, axis=0)
        assert END not in [word for words in ids for word in words]
    elif reading.alpha is not None:
        alphas = [reading.alpha[0, number].numpy() for number in range(len(ids))]
    if reading.beta is not None:
        assert reading.tag_ids is not None
        tags = [checkpoint.vocabulary.tags[number] for number in reading.tag_ids[0].tolist()]
        for number in range(len(ids)):
            pairs[number] = list(zip(tags, reading.beta[0, number].tolist(), strict=True))
    squares = [None if a is None else a.reshape(2 * [round(a.size**0.5)]) for a in alphas]
    return list(zip(texts, squares, pairs, strict=True))


@pytest.mark.parametrize(
    ("system", "visual", "semantic"),
    [
        ("co_attention", True, True),
        ("visual_only", True, False),
        ("semantic_only", False, True),
        ("soft_att", True, False),
    ],
)
def test_a_run_is_measured_as_by_hand(
    config: Config, tmp_path: Path, system: str, visual: bool, semantic: bool
) -> None:
    own = config.override({"model.system": system, "run.name": system})
    run_training(own, Console(quiet=True))
    # The last one; the best of so short a run may be one that has learned nothing yet.
    last = latest(Path(own.run.folder) / system)
    assert last
    checkpoint = Checkpoint.open(last)
    split = PreparedDataset.open(config.data.path).split("train")
    reports = [by_hand(checkpoint, picture) for picture in split.pixels(np.arange(len(split)))]
    side = next((a.shape[0] for report in reports for _, a, _ in report if a is not None), 1)
    present: list[dict[str, list[list[bool]]]] = []
    for findings in split.findings:
        # The phantom's boxes are of no whole pixels: a region is reached by a point inside both.
        marks = np.linspace(0, 1, 2001)[1:-1]
        present.append(
            {
                one.tag: [
                    [
                        any((one.top < marks) & (marks < one.bottom) & inside(row, side, marks))
                        and any((one.left < marks) & (marks < one.right) & inside(c, side, marks))
                        for c in range(side)
                    ]
                    for row in range(side)
                ]
                for one in findings
            }
        )
    known = {one.tag for findings in split.findings for one in findings}
    named = {}
    for text in {text for report in reports for text, _, _ in report}:
        normal = {"no", "normal", "clear", "stable"} & set(text.split())
        named[text] = () if normal else tuple(t for t in known if f" {t} " in f" {text} ")
    wanted = expected(reports, present, named)
    assert wanted.sentences > 0
    assert wanted.right
    found = measure_attention(checkpoint, own, "train", tmp_path / "new" / "out")
    assert found is not None
    assert_same(found, wanted)
    assert (found.region is not None, found.tag is not None) == (visual, semantic)
    left = json.loads((tmp_path / "new" / "out" / ATTENTION_FILE).read_text())
    record = left.pop("made_from")
    assert AttentionScores(**left) == found
    assert record["data"] == {
        "path": own.data.path,
        "content_hash": checkpoint.content_hash,
        "split": "train",
    }
    other = own.override({"generation.max_words": 2})
    with pytest.raises(UsageError, match=r"attention\.json: .*max_words: \d+ -> 2\)"):
        measure_attention(checkpoint, other, "train", tmp_path / "new" / "out")


def inside(cell: int, cells: int, marks: np.ndarray) -> np.ndarray:
    """Which marks lie within a row or column of regions."""
    within: np.ndarray = (cell / cells < marks) & (marks < (cell + 1) / cells)
    return within


def test_scores_that_cannot_be_written_are_refused(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    checkpoint = Checkpoint.open(trained)
    with pytest.raises(UsageError, match=r"file/test: cannot be written \(Not a directory\)"):
        measure_attention(checkpoint, checkpoint.config, "test", tmp_path / "file" / "test")
