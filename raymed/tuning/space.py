"""The search space: what the configuration says, asked of an Optuna trial."""

from collections.abc import Mapping
from typing import Any

import optuna

from raymed.sections import Dimension
from raymed.tuning.trial import NUMBER

Proposal = dict[str, Any]
"""Dotted keys of the configuration and the values to try; and Optuna's number of the trial."""


def propose(trial: optuna.Trial, space: Mapping[str, Dimension]) -> Proposal:
    """Ask Optuna for a value of each key; first, where ``or`` is given, whether it is taken."""
    values = {key: _suggest(trial, key, dimension) for key, dimension in space.items()}
    return {NUMBER: trial.number, **values}


def _suggest(trial: optuna.Trial, key: str, dimension: Dimension) -> Any:
    if dimension.or_value is not None:
        other = f"{key} = {dimension.or_value:g}"
        if trial.suggest_categorical(other, [False, True]):
            return dimension.or_value
    if dimension.choice:
        return trial.suggest_categorical(key, list(dimension.choice))
    if dimension.integer:
        return trial.suggest_int(key, *dimension.integer)
    if dimension.log_uniform:
        return trial.suggest_float(key, *dimension.log_uniform, log=True)
    assert dimension.uniform
    return trial.suggest_float(key, *dimension.uniform)
