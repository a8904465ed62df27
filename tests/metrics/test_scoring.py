import math
import random

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from raymed.metrics import meteor, ngrams
from raymed.metrics.cider import cider, ciders
from raymed.metrics.meteor import MeteorUnavailable
from tests.support.report_scores import report_scores

REFERENCES = [
    "no acute cardiopulmonary abnormality the heart is normal in size",
    "the lungs are clear no pleural effusion",
    "small left pleural effusion the heart is enlarged",
    "stable nodule in the right upper lobe the lungs are otherwise clear",
    "no pneumothorax",
]
HYPOTHESES = [
    "the heart is normal in size the lungs are clear",
    "the lungs are clear no pneumothorax or pleural effusion",
    "the heart is normal in size the lungs are clear",
    "nodule in the left upper lobe",
    "no acute abnormality",
]


def scores_of(references, hypotheses):
    return report_scores(references, hypotheses)[0]


@pytest.fixture
def without_java(monkeypatch):
    def unavailable(*_, **__):
        raise MeteorUnavailable("no Java here")

    monkeypatch.setattr(meteor, "align", unavailable)


@pytest.mark.usefixtures("without_java")
@pytest.mark.parametrize("empty", [(), (0, 3), range(5)])
def test_scores_equal_pycocoevalcap_called_directly(empty, capsys):
    hypotheses = ["" if image in empty else text for image, text in enumerate(HYPOTHESES)]
    scores = scores_of(REFERENCES, hypotheses)
    assert capsys.readouterr().out == ""
    truth = {str(image): [text] for image, text in enumerate(REFERENCES)}
    generated = {str(image): [text] for image, text in enumerate(hypotheses)}
    bleu = Bleu(4).compute_score(truth, generated)[0]
    assert [scores["bleu_1"], scores["bleu_2"], scores["bleu_3"], scores["bleu_4"]] == bleu
    assert scores["rouge_l"] == pytest.approx(Rouge().compute_score(truth, generated)[0], rel=1e-12)
    assert scores["cider"] == pytest.approx(Cider().compute_score(truth, generated)[0], rel=1e-12)
    assert cider(REFERENCES, hypotheses) == scores["cider"]
    assert (scores["cider"] > 0) == (len(empty) < 5)


@pytest.mark.usefixtures("without_java")
def test_an_empty_hypothesis_scores_zero():
    scores = scores_of(REFERENCES, ["", " ", "", "", "\n"])
    values = (scores["bleu_1"], scores["bleu_4"], scores["rouge_l"], scores["cider"])
    assert values == (0, 0, 0, 0)
    assert scores["distinct"] == 1
    # ROUGE-L and CIDEr are means over images, so one empty text of two takes its share away.
    with_both = scores_of(REFERENCES[:2], REFERENCES[:2])
    with_one = scores_of(REFERENCES[:2], [REFERENCES[0], ""])
    assert with_one["rouge_l"] == pytest.approx(with_both["rouge_l"] / 2)
    assert with_one["cider"] == pytest.approx(with_both["cider"] / 2)


@pytest.mark.usefixtures("without_java")
def test_perfect_reports_score_highest_and_one_pair_has_no_cider():
    scores = scores_of(REFERENCES[:4], REFERENCES[:4])
    assert [scores["bleu_1"], scores["bleu_4"], scores["rouge_l"]] == pytest.approx([1, 1, 1])
    assert scores["cider"] == pytest.approx(10)
    assert cider(REFERENCES[:1], REFERENCES[:1]) == 0


@pytest.mark.usefixtures("without_java")
def test_distinct_counts_texts_and_spacing_changes_nothing():
    scores = scores_of(REFERENCES, HYPOTHESES)
    assert scores["distinct"] == 4
    spaced = [" " + text.replace(" ", "  ") + "\n" for text in HYPOTHESES]
    assert scores_of(REFERENCES, spaced) == scores


@pytest.mark.usefixtures("without_java")
def test_without_java_meteor_is_missing_with_the_reason():
    scores, missing = report_scores(REFERENCES, HYPOTHESES)
    assert scores["meteor"] is None
    assert missing == {"meteor": "no Java here"}
    assert not math.isnan(scores["cider"])


def test_meteor_is_one_of_the_scores(monkeypatch):
    asked = []
    # Half of ten words match, in one chunk of five.
    counts = np.array([[5, 10, 5, 10, 1, 5]] * 5)
    monkeypatch.setattr(meteor, "align", lambda *texts, **_: asked.append(texts) or counts)
    scores = scores_of(REFERENCES, HYPOTHESES)
    assert asked == [(REFERENCES, HYPOTHESES)]
    assert scores["meteor"] == pytest.approx(0.5 * (1 - 0.6 * 0.2**0.2))


def many(seed):
    """Reports of 30 images cut after so many words, from words of which some are rare."""
    draw = random.Random(seed)
    words = sorted({word for text in (*REFERENCES, *HYPOTHESES) for word in text.split()})

    def text(longest):
        chosen = draw.choices(
            words, weights=[n**2 for n in range(1, len(words) + 1)], k=draw.randint(1, longest)
        )
        return " ".join(chosen)

    references = [text(25) for _ in range(30)]
    hypotheses = [text(25) if draw.random() < 0.7 else one for one in references]
    return references, [[" ".join(h.split()[:n]) for h in hypotheses] for n in (0, 1, 2, 5, 9, 30)]


@pytest.mark.parametrize("seed", range(5))
def test_cider_of_many_sets_is_cider_of_each(seed, monkeypatch):
    references, sets = many(seed)
    sets += [["unknown words only"] * 30, references, [f"  {text} \n" for text in sets[3]]]
    truth = {image: [text] for image, text in enumerate(references)}
    expected = [
        Cider().compute_score(truth, {i: [" ".join(h.split())] for i, h in enumerate(one)})[0]
        for one in sets
    ]
    monkeypatch.setattr(ngrams, "CHUNK", 7)
    assert [cider(references, one) for one in sets] == ciders(references, sets)
    assert ciders(references, sets) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert len({round(score, 6) for score in expected}) > 5


def test_cider_of_many_sets_at_its_limits():
    assert ciders(REFERENCES, []) == []
    assert ciders(REFERENCES[:1], [REFERENCES[:1], [""]]) == [0, 0]
    assert ciders(["a", "a"], [["a", "a"], ["b", ""]]) == [0, 0]


def test_a_wrong_set_of_many_is_named():
    with pytest.raises(ValueError, match="4 hypotheses for 5 references"):
        ciders(REFERENCES, [HYPOTHESES, HYPOTHESES[:4]])
    with pytest.raises(ValueError, match="nothing to score"):
        ciders([], [[]])
    with pytest.raises(ValueError, match=r"number 1 \(from 0\) has none"):
        ciders(["lungs clear", " "], [["lungs clear", "lungs clear"]])


@pytest.mark.parametrize("score", [cider, report_scores])
def test_wrong_texts_are_named(score):
    with pytest.raises(ValueError, match="4 hypotheses for 5 references"):
        score(REFERENCES, HYPOTHESES[:4])
    with pytest.raises(ValueError, match="nothing to score"):
        score([], [])
    with pytest.raises(ValueError, match=r"number 1 \(from 0\) has none"):
        score(["lungs clear", " "], ["lungs clear", "lungs clear"])
