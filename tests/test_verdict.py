"""The verdict of an evaluation, in words."""

import pytest

from raymed.metrics.scoring import Scores
from raymed.verdict import verdict

RECALL = {"recall_5": 0.5, "recall_10": 0.6, "recall_20": 0.7}


def rows(model: float | None, constant: float | None, nearest: float | None) -> dict[str, Scores]:
    names = ("co_attention", "constant report", "nearest image")
    scores = zip(names, (model, constant, nearest), strict=True)
    return {name: Scores(**RECALL, cider=cider) for name, cider in scores}


@pytest.mark.parametrize(
    ("ciders", "expected"),
    [
        (
            (4.918, 1.94, 2.831),
            "CIDEr 4.92: beats the constant report (1.94) and the nearest image (2.83).",
        ),
        (
            (0.12, 0.27, 0.31),
            "CIDEr 0.12 does not beat the constant report (0.27) or the nearest image (0.31).",
        ),
        (
            (0.0451, 0.01, 0.0459),
            "CIDEr 0.045: beats the constant report (0.010), but not the nearest image (0.046).",
        ),
        (
            (0.0, 0.0, 0.1),
            "CIDEr 0.00 does not beat the constant report (0.00) or the nearest image (0.10).",
        ),
    ],
)
def test_the_score_is_compared_with_both_baselines(
    ciders: tuple[float, float, float], expected: str
) -> None:
    assert verdict(rows(*ciders)) == expected


def test_three_baselines_are_listed() -> None:
    three = rows(0.5, 0.1, 0.2) | {"nearest image (features)": Scores(**RECALL, cider=0.3)}
    assert verdict(three) == (
        "CIDEr 0.50: beats the constant report (0.10), the nearest image (0.20) and the nearest "
        "image (features) (0.30)."
    )
    three["co_attention"]["cider"] = 0.15
    assert verdict(three).endswith(
        "beats the constant report (0.10), but not the nearest image (0.20) or the nearest image "
        "(features) (0.30)."
    )


def test_a_system_that_writes_no_report_is_judged_by_its_tags() -> None:
    assert verdict(rows(None, 0.3, 0.4)) == (
        "tag recall@5 0.50 does not beat the constant report (0.50) or the nearest image (0.50)."
    )


def test_an_undefined_score_is_not_judged() -> None:
    scores = rows(None, None, None)
    scores["co_attention"] |= {"recall_5": float("nan")}
    assert verdict(scores).startswith("tag recall@5 is undefined on this split")
