"""R2Gen's text: references are compared with those of a second implementation of its rules."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from raymed.data.dataset import PreparedDataset
from raymed.data.examples import Example, Rejected
from raymed.data.prepare import prepare_source
from raymed.data.r2gen_text import IU_XRAY, MIMIC_CXR, R2GenRules, R2GenText
from raymed.data.schema import DatasetInfo
from raymed.data.sources import iu_xray, load_settings, r2gen
from raymed.errors import UsageError
from raymed.sections import PrepareConfig
from tests.support.prepared import prepare_examples
from tests.support.r2gen_by_hand import references_by_hand, words_by_hand

REAL = Path(__file__).resolve().parents[2] / "../shared/data/iu_xray/r2gen_annotation.json"
PIXEL = np.zeros((8, 8), np.uint8)


def references_of(out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, set[str]]]:
    """Split -> study -> the references of its images."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(out.parent / "cache"))
    found: dict[str, dict[str, set[str]]] = {}
    for name in ("train", "val", "test"):
        split = PreparedDataset.open(out).split(name)
        of_study = found.setdefault(name, {})
        for study, text in zip(split.studies, split.references, strict=True):
            of_study.setdefault(study, set()).add(text)
    return found


def prepared(
    examples: Iterable[Example | Rejected], out: Path, rules: R2GenRules, **settings: Any
) -> DatasetInfo:
    return prepare_examples(examples, out, image_size=8, text="r2gen", rules=rules, **settings)


def with_pixels(pairs: Iterable[Example | Rejected]) -> Iterator[Example]:
    """The examples alone, with an image that can be read."""
    return (replace(pair, image=PIXEL) for pair in pairs if isinstance(pair, Example))


ODD = [
    "",
    ".",
    "... ...",
    " 2. Leading. 3. Third. 4. Fourth 5. fifth. 6. Sixth.",
    "1. One. 2. Two.3. Three. 11. Eleven; T11. T12. 1. 1. Again",
    "Dots.... and........ more.................. end..",
    "X-XXXX-ray, 1.5 x 2.0 cm (5%) = {a} [b] <c> a@b; c:d e"
    "?f!g*h^i&j_k+l \"q\" 'r' s/t\\u |v| #w ~x `y",
    "No.  Two spaces.   Three.    2.  Spaced",
    "Line\n2. Next\n\n 3. ___ ____ removed_ .\n",
    "Unspaced.Sentence. \tTab.\r\nReturn.\u00a0Space. École Ⅻ İ",
    " " * 200 + "2. far" + " " * 90 + "3. end",
]


@pytest.mark.parametrize("rules", [IU_XRAY, MIMIC_CXR], ids=["iu_xray", "mimic_cxr"])
def test_words_of_odd_reports(rules: R2GenRules) -> None:
    pieces = [".", "..", " ", "  ", "\n", "1. ", " 2. ", ". 3. ", "a", "B-c", "_", "5", "'", "<"]
    rng = np.random.default_rng(0)
    drawn = ["".join(rng.choice(pieces, rng.integers(0, 40))) for _ in range(3000)]
    for text in (*ODD, *drawn):
        sentences = rules.preprocess(text).sentences
        assert " ".join(sentences).split() == words_by_hand(text, rules is MIMIC_CXR), text
        assert all(sentence.split().index(".") == sentence.count(" ") for sentence in sentences)


def test_what_the_rules_make_of_a_report() -> None:
    text = "1. Heart size is normal. 2. No focal airspace-disease, effusion (1.5 cm). T11. Fine.."
    assert IU_XRAY.preprocess(text).sentences == [
        "heart size is normal .",
        "no focal airspace-disease effusion 15 cm .",
        "t1fine .",
    ]


def made_up(count: int) -> dict[str, list[str]]:
    """Reports of a few frequent and many rare words, some longer than either limit."""
    rng = np.random.default_rng(1)
    words = [f"w{chr(97 + n)}" for n in range(26)] + [f"x{n:03}" for n in range(200)]
    odds = np.array([20.0] * 26 + [1.0] * 200)
    texts = []
    for _ in range(count):
        drawn = rng.choice(words, rng.integers(1, 140), p=odds / odds.sum())
        ends = rng.choice(["", ".", ",", " 2."], len(drawn), p=[0.8, 0.1, 0.05, 0.05])
        texts.append(" ".join(map("".join, zip(drawn, ends, strict=True))))
    return {"train": texts[20:], "val": texts[:10], "test": texts[10:20]}


@pytest.mark.parametrize("rules", [IU_XRAY, MIMIC_CXR], ids=["iu_xray", "mimic_cxr"])
def test_references_are_those_of_r2gen(
    rules: R2GenRules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One count of words per record, however many images it has and whether they can be read."""
    reports = made_up(80)
    examples = [
        Example(
            f"{split}-{n}-{image}",
            f"{split}-{n // 2}",
            Path("missing.png") if n == 3 and split == "train" and image else PIXEL + image,
            text,
            ("ab"[image],),
            split,
            record=f"{split} {n}",
        )
        for split, texts in reports.items()
        for n, text in enumerate(texts)
        for image in range(1 + n % 2)
    ]
    info = prepared(examples, tmp_path / "out", rules)
    assert info.rejected == {"image file not found": 1}
    found = references_of(tmp_path / "out", monkeypatch)
    expected = references_by_hand(reports, rules is MIMIC_CXR)
    of_studies: dict[str, dict[str, set[str]]] = {}
    for split, texts in expected.items():
        for n, text in enumerate(texts):
            of_studies.setdefault(split, {}).setdefault(f"{split}-{n // 2}", set()).add(text)
    assert found == of_studies
    words = [w for text in reports["train"] for w in words_by_hand(text, rules is MIMIC_CXR)]
    counts, assumed = Counter(words), info.r2gen
    assert assumed is not None
    assert info.text == "r2gen"
    assert (assumed.dataset, assumed.min_count) == (rules.dataset, rules.min_count)
    rare = [word for word in words if counts[word] < rules.min_count]
    assert assumed.vocabulary == len(counts) - len(set(rare))
    assert assumed.unknown == pytest.approx(len(rare) / len(words))
    lengths = [len(words_by_hand(text, rules is MIMIC_CXR)) for text in reports["train"]]
    cut = sum(max(0, length - rules.max_words) for length in lengths)
    assert assumed.cut == pytest.approx(cut / len(words))
    assert 0 < assumed.cut < 1
    assert 0 < assumed.unknown < 1
    assert PreparedDataset.open(tmp_path / "out").info == info


@pytest.mark.skipif(not REAL.is_file(), reason="the real annotation file is not there")
@pytest.mark.parametrize("source", ["r2gen", "iu-xray"])
def test_all_references_of_the_real_file(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the file itself, and of the official archive's findings with the file as its split."""
    if source == "r2gen":
        pairs = list(r2gen.read(REAL))
        info = prepared(with_pixels(pairs), tmp_path / "out", r2gen.rules_of(REAL))
        assert info.counts == {"train": 4138, "val": 592, "test": 1180}
        assert info.rejected == {}
    else:
        pairs = list(iu_xray.read(REAL.parent, sections="findings"))
        listed = {"split": "r2gen", "split_file": str(REAL)}
        prepared(with_pixels(pairs), tmp_path / "out", IU_XRAY, **listed)
    reports: dict[str, dict[str, str]] = {"train": {}, "val": {}, "test": {}}
    for records in json.loads(REAL.read_text()).values():
        for record in records:
            study = record["id"] if source == "r2gen" else record["id"].partition("_")[0]
            reports[record["split"]][study] = record["report"]
    expected = references_by_hand({s: list(texts.values()) for s, texts in reports.items()}, False)
    references = references_of(tmp_path / "out", monkeypatch)
    assert references == {
        split: {study: {text} for study, text in zip(texts, expected[split], strict=True)}
        for split, texts in reports.items()
    }
    assert sum(map(len, references.values())) == 2955


def test_a_source_says_whose_rules_are_meant(tmp_path: Path) -> None:
    path = tmp_path / "annotation.json"
    record = {"id": "a", "study_id": 5, "report": "Clear.", "image_path": ["a.png"]}
    for first, rules in (
        ({**record, "subject_id": 7}, MIMIC_CXR),
        ({**record, "id": "CXR1_IM-0001-3001"}, IU_XRAY),
    ):
        path.write_text(json.dumps({"train": [first]}))
        assert r2gen.rules_of(path) is rules
    for content in ({"train": []}, {"train": [record]}):
        path.write_text(json.dumps(content))
        settings = PrepareConfig(out=str(tmp_path / "out"), text="r2gen")
        with pytest.raises(UsageError, match=r"text=r2gen is for .*; use text=paper"):
            prepare_source("r2gen", str(path), settings, Console(quiet=True))
    with pytest.raises(UsageError, match="text: is a setting of iu-xray, mimic-cxr, r2gen"):
        load_settings("phantom", [f"out={tmp_path}", "text=r2gen"])


def test_many_words_need_a_larger_vocabulary() -> None:
    few = R2GenText("iu_xray", 3, 59, vocabulary=999, unknown=0.02, cut=0.0)
    assert len(few.lines()) == 1
    assert "2.0% are <unk>, seen less than 3 times; 0.0% are cut" in few.lines()[0]
    many = replace(few, vocabulary=1000)
    assert many.lines()[1] == "To train on all 1,001 words, set data.vocabulary=1001"
