"""An evaluation's result in one sentence: does the model beat the baselines?"""

import math
from collections.abc import Mapping, Sequence

from raymed.metrics.scoring import Scores
from raymed.metrics.table import ranking

FEWEST_DIGITS, MOST_DIGITS = 2, 4


def verdict(rows: Mapping[str, Scores]) -> str:
    """Compare the model's score with those of the baselines, in words.

    Args:
        rows: The model's scores, then those of the baselines, each by its name. They are compared
            by the metric that ranks the model: CIDEr, or the tag recall@5 of a system that writes
            no reports.
    """
    model, *baselines = rows
    metric = ranking(rows[model])
    scores = {name: _number(row[metric.key]) for name, row in rows.items()}
    if any(math.isnan(score) for score in scores.values()):
        return f"{metric.label} is undefined on this split, so nothing can be said of the model."
    shown = _distinguishable(scores)
    named = {name: f"the {name} ({shown[name]})" for name in baselines}
    beaten = [named[name] for name in baselines if scores[model] > scores[name]]
    unbeaten = [named[name] for name in baselines if not scores[model] > scores[name]]
    text = f"{metric.label} {shown[model]}"
    if not beaten:
        return f"{text} does not beat {_listed(unbeaten, 'or')}."
    if not unbeaten:
        return f"{text}: beats {_listed(beaten, 'and')}."
    return f"{text}: beats {_listed(beaten, 'and')}, but not {_listed(unbeaten, 'or')}."


def _listed(names: Sequence[str], word: str) -> str:
    """``a``, ``a and b``, or ``a, b and c``."""
    *others, last = names
    return f"{', '.join(others)} {word} {last}" if others else last


def _number(score: float | None) -> float:
    return math.nan if score is None else score


def _distinguishable(scores: Mapping[str, float]) -> dict[str, str]:
    """The scores with as few digits as show which of them differ."""
    for digits in range(FEWEST_DIGITS, MOST_DIGITS + 1):
        shown = {name: f"{score:.{digits}f}" for name, score in scores.items()}
        if len(set(shown.values())) == len(set(scores.values())):
            break
    return shown
