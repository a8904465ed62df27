import gzip
import os
from pathlib import Path

import pytest
from pycocoevalcap.meteor.meteor import Meteor

from raymed.metrics import meteor as module
from raymed.metrics.meteor import (
    MeteorUnavailable,
    align,
    filtered_table,
    foreign_share,
    measure,
    meteor,
)
from raymed.metrics.scoring import Predictions, score_split
from raymed.metrics.table import METRICS

REFERENCES = [
    "no acute cardiopulmonary abnormality the heart is normal in size",
    "the lungs are clear with no evidence of pleural effusion",
    "small left pleural effusion and the heart is enlarged",
    "stable nodule in the right upper lobe as compared with the previous study",
    "no pneumothorax",
    "there is a large amount of fluid in the chest",
]
HYPOTHESES = [
    "normal heart size and no severe anomaly",
    "lungs clear there is no sign of an effusion",
    "",
    "in comparison with the prior exam the nodules remain unchanged",
    "pneumothorax",
    "a lot of liquid is seen within the thorax",
]
TABLE = (
    (b"0.5", b"a lot of", b"a large amount of"),
    (b"0.5", b"a lot of", b"many"),
    (b"0.4", b"anomaly", b"abnormality"),
    (b"0.3", b"liquid", b"fluid"),
    (b"0.2", b"x-ray", b"film 2"),
)


@pytest.fixture
def small_table(tmp_path, monkeypatch):
    """A full table of five rows and an empty cache; returns where filtered tables are kept."""
    path = tmp_path / "paraphrases.gz"
    with gzip.open(path, "wb") as file:
        file.writelines(line + b"\n" for row in TABLE for line in row)
    monkeypatch.setattr(module, "PARAPHRASES", path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "raymed" / "meteor"


def corpus_score(references: list[str], hypotheses: list[str]) -> float:
    return float(meteor(align(references, hypotheses).sum(axis=0)[None])[0])


def rows_of(table: Path) -> list[tuple[bytes, ...]]:
    with gzip.open(table) as file:
        lines = file.read().splitlines()
    return list(zip(lines[::3], lines[1::3], lines[2::3], strict=True))


@pytest.mark.parametrize(
    ("reference", "percent"),
    [
        ("le c\u0153ur est de taille normale pas d \u00e9panchement", 100 * 2 / 39),
        ("\u4e24 \u80ba \u6e05 \u6670 ct", 100 * 4 / 6),
        ("\u0441\u0435\u0440\u0434\u0446\u0435 \u0432 \u043d\u043e\u0440\u043c\u0435", 100),
        ("\u03b7 \u03ba\u03b1\u03c1\u03b4\u03b9\u03ac", 100),
        ("\u0627\u0644\u0642\u0644\u0628 \u0637\u0628\u064a\u0639\u064a", 100),
    ],
)
def test_it_is_absent_for_other_languages(reference, percent):
    texts = [reference] * 3
    assert foreign_share(texts) == pytest.approx(percent / 100)
    predictions = Predictions(texts, texts, None, [], [])
    found = score_split(predictions, [METRICS["meteor"], METRICS["rouge_l"]])
    assert found.scores == {"meteor": None, "rouge_l": pytest.approx(1)}
    reason = found.unavailable["meteor"]
    assert f"METEOR is for English, but {percent:.1f}% of the letters" in reason


def test_a_foreign_name_in_english_is_no_reason(small_table):  # noqa: ARG001
    """A letter in 200 is the most that English has."""
    english = " ".join(REFERENCES)
    assert foreign_share([english, "1.5 - <unk> ."]) == 0
    letters = sum(map(len, english.split()))
    assert letters < 386
    few = f"{english} sj\u00f6gren sj\u00f6gren {'a' * (400 - letters - 14)}"
    assert foreign_share([few]) == pytest.approx(2 / 400) == module.MOST_FOREIGN
    found = measure(Predictions([few], [few], None, [], []))
    assert meteor(found.counts).item() > 0.9


@pytest.mark.slow
def test_score_equals_pycocoevalcap_with_the_full_table(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # Among them a hypothesis that is its reference, whose one chunk METEOR does not count.
    references, hypotheses = [*REFERENCES, "no nodule"], [*HYPOTHESES, "no nodule"]
    counts = align(references, hypotheses)
    score = float(meteor(counts.sum(axis=0)[None])[0])

    monkeypatch.setenv("PATH", str(module.JAVA.parent), prepend=os.pathsep)
    theirs = Meteor()
    truth = {image: [text] for image, text in enumerate(references)}
    generated = {image: [text] for image, text in enumerate(hypotheses)}
    expected, by_image = theirs.compute_score(truth, generated)
    theirs.meteor_p.stdout.close()
    theirs.meteor_p.stderr.close()
    assert score == pytest.approx(expected, abs=1e-12)
    assert meteor(counts).tolist() == pytest.approx(by_image, abs=1e-12)
    assert by_image[2] == 0  # the empty text
    assert by_image[-1] == 1

    # Paraphrases do matter for these texts: with none, the score is another.
    with gzip.open(tmp_path / "none.gz", "wb"):
        pass
    monkeypatch.setattr(module, "filtered_table", lambda _: tmp_path / "none.gz")
    assert corpus_score(references, hypotheses) < score - 0.01


@pytest.mark.usefixtures("small_table")
def test_score_of_equal_empty_and_barred_texts():
    assert corpus_score(REFERENCES, [""] * 6) == 0
    assert corpus_score(REFERENCES[:1], HYPOTHESES[:1]) > 0
    assert corpus_score(REFERENCES, REFERENCES) > 0.99
    barred = [text.replace(" ", " ||| ", 1) + "\n" for text in REFERENCES]
    assert corpus_score(barred, barred) == corpus_score(REFERENCES, REFERENCES)
    with pytest.raises(ValueError, match="2 hypotheses for 1 ref"):
        align(REFERENCES[:1], HYPOTHESES[:2])


def test_a_paraphrase_is_kept_if_all_its_letters_occur(small_table):
    texts = ["A lot of liquid", "a large amount of fluid; many"]
    table = filtered_table(texts)
    assert table.parent == small_table
    assert rows_of(table) == [TABLE[0], TABLE[1], TABLE[3]]
    assert rows_of(filtered_table(["x-rays"])) == []
    assert rows_of(filtered_table(["ray x", "films of film"])) == [TABLE[4]]


def test_a_table_is_built_once_for_the_same_words(small_table, monkeypatch):
    made = []
    filter_table = module._filter
    monkeypatch.setattr(module, "_filter", lambda *a: made.append(a) or filter_table(*a))
    first = filtered_table(["fluid liquid"])
    assert filtered_table(["liquid", "fluid liquid"]) == first
    assert len(made) == 1
    assert filtered_table(["anomaly"]) != first
    assert len(made) == 2
    with gzip.open(module.PARAPHRASES, "ab") as full:
        full.write(b"0.1\nfluid\nliquid\n")
    assert rows_of(filtered_table(["fluid liquid"])) == [TABLE[3], (b"0.1", b"fluid", b"liquid")]
    assert sorted(path.suffix for path in small_table.iterdir()) == [".gz"] * 3


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda _: b"", lambda b: b[:12] + b[13:]])
@pytest.mark.usefixtures("small_table")
def test_a_truncated_table_is_rebuilt(damage):
    table = filtered_table(["fluid liquid"])
    table.write_bytes(damage(table.read_bytes()))
    assert filtered_table(["fluid liquid"]) == table
    assert rows_of(table) == [TABLE[3]]


def test_an_interrupted_filter_leaves_nothing(small_table, monkeypatch):
    full = module.PARAPHRASES.read_bytes()
    module.PARAPHRASES.write_bytes(full[:-12] + full[-8:])
    with pytest.raises(MeteorUnavailable, match="table of paraphrases"):
        filtered_table(["fluid liquid"])
    assert list(small_table.iterdir()) == []
    monkeypatch.setattr(module, "PARAPHRASES", Path("nowhere.gz"))
    with pytest.raises(MeteorUnavailable, match=r"nowhere\.gz"):
        filtered_table(["fluid liquid"])


def test_a_cache_that_cannot_be_written_is_named(small_table):
    small_table.parent.parent.write_text("a file where the folder should be")
    with pytest.raises(MeteorUnavailable, match="raymed"):
        filtered_table(["fluid liquid"])


@pytest.mark.usefixtures("small_table")
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (None, "Java does not start"),
        ("echo out of order >&2; exit 3", "ended with code 3: out of order"),
        ("exec sleep 30", "no score within 3 seconds"),
        (r"printf 'statistics\nscore\nwords\n'; exec cat >/dev/null", "ended with code 0"),
    ],
)
def test_the_reason_of_a_failing_java_is_reported(program, reason, tmp_path, monkeypatch):
    java = tmp_path / "java"
    if program is not None:
        java.write_text(f"#!/bin/sh\n{program}\n")
        java.chmod(0o755)
    monkeypatch.setattr(module, "JAVA", java)
    with pytest.raises(MeteorUnavailable, match=reason):
        align(REFERENCES[:1], HYPOTHESES[:1], timeout_s=3)
