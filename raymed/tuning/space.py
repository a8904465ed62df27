"""The search space: what the configuration says, asked of an Optuna trial."""

from collections.abc import Mapping
from typing import Any

import optuna

from raymed.sections import Dimension

Space = Mapping[str, Dimension]
Values = dict[str, Any]
"""Dotted keys of the configuration and the values to try."""


def propose(trial: optuna.Trial, space: Space) -> Values:
    """Ask Optuna for a value of each key that is searched under the values before it.

    Asked again of a trial that has been asked, it gives the same values.
    """
    values: Values = {}
    for key, dimension in space.items():
        if all(values.get(other) in wanted for other, wanted in dimension.when.items()):
            values[key] = _suggest(trial, key, dimension)
    return values


def proposed(params: Mapping[str, Any], space: Space) -> Values:
    """The values behind a trial's parameters, as `propose` gave them."""
    values = {}
    for key, dimension in space.items():
        if dimension.or_value is not None and params.get(question(key, dimension)):
            values[key] = dimension.or_value
        elif key in params:
            values[key] = params[key]
    return values


def as_parameters(point: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """The parameters that a point of ``tune.points_to_evaluate`` fixes."""
    params: dict[str, Any] = {}
    for key, value in point.items():
        dimension = space[key]
        if dimension.or_value is not None:
            params[question(key, dimension)] = value == dimension.or_value
        if dimension.or_value is None or value != dimension.or_value:
            params[key] = value
    return params


def question(key: str, dimension: Dimension) -> str:
    """The parameter by which Optuna is asked whether a key takes its value of ``or``."""
    return f"{key} = {dimension.or_value:g}"


def _suggest(trial: optuna.Trial, key: str, dimension: Dimension) -> Any:
    if dimension.or_value is not None and trial.suggest_categorical(
        question(key, dimension), [False, True]
    ):
        return dimension.or_value
    if dimension.choice:
        return trial.suggest_categorical(key, list(dimension.choice))
    if dimension.integer:
        return trial.suggest_int(key, *dimension.integer)
    if dimension.log_uniform:
        return trial.suggest_float(key, *dimension.log_uniform, log=True)
    assert dimension.uniform
    return trial.suggest_float(key, *dimension.uniform)
