"""An evaluation's result in one sentence: does the model beat the baselines?"""

import math
from collections.abc import Mapping

from raymed.scores import MEASURES, Scores

FEWEST_DIGITS, MOST_DIGITS = 2, 4


def verdict(rows: Mapping[str, Scores]) -> str:
    """Compare the model's score with those of the baselines, in words.

    Args:
        rows: The model's scores, then those of the baselines, each by its name. The score is the
            CIDEr, or the tag recall@5 of a system that writes no report.
    """
    model, *baselines = rows
    key = "recall_5" if rows[model].cider is None else "cider"
    scores = {name: float(getattr(row, key)) for name, row in rows.items()}
    if any(math.isnan(score) for score in scores.values()):
        return f"{MEASURES[key]} is undefined on this split, so nothing can be said of the model."
    shown = _distinguishable(scores)
    named = {name: f"the {name} ({shown[name]})" for name in baselines}
    beaten = [named[name] for name in baselines if scores[model] > scores[name]]
    unbeaten = [named[name] for name in baselines if not scores[model] > scores[name]]
    text = f"{MEASURES[key]} {shown[model]}"
    if not beaten:
        return f"{text} does not beat {' or '.join(unbeaten)}."
    if not unbeaten:
        return f"{text}: beats {' and '.join(beaten)}."
    return f"{text}: beats {' and '.join(beaten)}, but not {' or '.join(unbeaten)}."


def _distinguishable(scores: Mapping[str, float]) -> dict[str, str]:
    """The scores with as few digits as show which of them differ."""
    for digits in range(FEWEST_DIGITS, MOST_DIGITS + 1):
        shown = {name: f"{score:.{digits}f}" for name, score in scores.items()}
        if len(set(shown.values())) == len(set(scores.values())):
            break
    return shown
