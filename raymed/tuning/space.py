"""The search space: what the configuration says, asked of an Optuna trial."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import optuna

from raymed.sections import Dimension

Space = Mapping[str, Dimension]
Values = dict[str, Any]
"""Dotted keys of the configuration and the values to try."""
DRAWS = 100
"""Points that are drawn at random before all are gone through."""


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


def to_params(point: Mapping[str, Any], space: Space) -> dict[str, Any]:
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


def same(values: Mapping[str, Any]) -> str:
    """A text that is equal for proposals of equal values."""
    # Of a key that takes whole numbers, its value of `or` is a float.
    plain = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in values.items()}
    return json.dumps(plain, sort_keys=True)


def size(space: Space, most: int) -> int:
    """How many different points there are, or ``most`` where there are more."""
    return sum(1 for _ in islice(_points(space), most)) if _is_finite(space) else most


def draw_untried(space: Space, tried: Collection[str], seed: Sequence[int]) -> Values | None:
    """A point drawn at random of those that were not tried; None if there is none left.

    Args:
        space: that is searched.
        tried: points, as `same` has them.
        seed: decides which.
    """
    sampler = optuna.samplers.RandomSampler(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    draws = optuna.create_study(sampler=sampler)
    for _ in range(DRAWS):
        point = propose(draws.ask(), space)
        if same(point) not in tried:
            return point
    if not _is_finite(space):
        return None
    return next((point for point in _points(space) if same(point) not in tried), None)


def _is_finite(space: Space) -> bool:
    return not any(dimension.uniform or dimension.log_uniform for dimension in space.values())


def _points(space: Space) -> Iterator[Values]:
    """All points of a finite space, one after the other: there may be very many."""

    def below(keys: Sequence[str], above: Values) -> Iterator[Values]:
        if not keys:
            yield above
            return
        key, *rest = keys
        dimension = space[key]
        if any(above.get(other) not in wanted for other, wanted in dimension.when.items()):
            yield from below(rest, above)
            return
        low, high = dimension.integer or (0, -1)
        seen = set()
        for value in chain(dimension.extremes(), range(low + 1, high)):
            if (text := same({key: value})) not in seen:
                seen.add(text)
                yield from below(rest, {**above, key: value})

    return below([*space], {})


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
