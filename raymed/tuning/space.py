"""The search space: what the configuration says, asked of an Optuna trial."""

from collections.abc import Callable, Mapping
from typing import Any

import optuna

from raymed.config import Dimension

Proposal = dict[str, Any]
"""Dotted keys of the configuration and the values to try; and Optuna's number of the trial."""

NUMBER = "trial"


def proposer(space: Mapping[str, Dimension]) -> Callable[[optuna.Trial], Proposal]:
    """A define-by-run function for Optuna: one ``suggest`` per key, two where ``or`` is given."""

    def propose(trial: optuna.Trial) -> Proposal:
        values = {key: _suggest(trial, key, dimension) for key, dimension in space.items()}
        return {NUMBER: trial.number, **values}

    return propose


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
