"""The search space, and the one place that maps its values to Optuna's parameters and back.

Optuna knows a key with ``or`` as two parameters: a yes-or-no question, named for example
``loss.attention = 0``, and, where it was answered with no, the value. All other code handles
`Values` only.
"""

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
"""Number of points drawn at random before all points are enumerated."""


def propose(trial: optuna.Trial, space: Space) -> Values:
    """Ask Optuna for a value of each key whose condition holds for the values before it.

    Asking the same trial again gives the same values.
    """
    values: Values = {}
    for key, dimension in space.items():
        if _is_searched(dimension, values):
            values[key] = _suggest(trial, key, dimension)
    return values


def to_values(params: Mapping[str, Any], space: Space) -> Values:
    """The values behind a trial's parameters, as `propose` returned them."""
    values = {}
    for key, dimension in space.items():
        if dimension.or_value is not None and params.get(_question(key, dimension)):
            values[key] = dimension.or_value
        elif key in params:
            values[key] = params[key]
    return values


def to_params(values: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """The parameters that fix the given values of a trial."""
    params: dict[str, Any] = {}
    for key, value in values.items():
        dimension = space[key]
        if dimension.or_value is not None:
            params[_question(key, dimension)] = value == dimension.or_value
        if dimension.or_value is None or value != dimension.or_value:
            params[key] = value
    return params


def canonical(values: Mapping[str, Any]) -> str:
    """A text that is the same for equal values."""
    # A key's value of `or` is a float, even if the key takes whole numbers.
    plain = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in values.items()}
    return json.dumps(plain, sort_keys=True)


def count_points(space: Space, limit: int) -> int:
    """Number of different points in the space, but at most ``limit``."""
    return sum(1 for _ in islice(points(space), limit)) if _is_finite(space) else limit


def points(space: Space) -> Iterator[Values]:
    """All points of a finite space, lazily: there may be very many."""

    def extend(values: Values, keys: Sequence[str]) -> Iterator[Values]:
        if not keys:
            yield values
            return
        key, *rest = keys
        dimension = space[key]
        if not _is_searched(dimension, values):
            yield from extend(values, rest)
            return
        low, high = dimension.integer or (0, -1)
        seen = set()
        for value in chain(dimension.extremes(), range(low + 1, high)):
            if (text := canonical({key: value})) not in seen:
                seen.add(text)
                yield from extend({**values, key: value}, rest)

    return extend({}, [*space])


def draw_untried(space: Space, tried: Collection[str], seed: Sequence[int]) -> Values | None:
    """Draw a random point that has not been tried; None if there is none left.

    Args:
        space: The search space.
        tried: Points tried so far, each as `canonical` text.
        seed: Seed of the draw.
    """
    sampler = optuna.samplers.RandomSampler(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    draws = optuna.create_study(sampler=sampler)
    for _ in range(DRAWS):
        point = propose(draws.ask(), space)
        if canonical(point) not in tried:
            return point
    if not _is_finite(space):
        return None
    return next((point for point in points(space) if canonical(point) not in tried), None)


def _is_searched(dimension: Dimension, values: Values) -> bool:
    """Whether a key's condition holds for the values of the keys before it."""
    return all(values.get(other) in allowed for other, allowed in dimension.when.items())


def _is_finite(space: Space) -> bool:
    return not any(dimension.uniform or dimension.log_uniform for dimension in space.values())


def _question(key: str, dimension: Dimension) -> str:
    """Name of the parameter that decides whether a key takes its value of ``or``.

    Studies on disk contain it.
    """
    return f"{key} = {dimension.or_value:g}"


def _suggest(trial: optuna.Trial, key: str, dimension: Dimension) -> Any:
    if dimension.or_value is not None and trial.suggest_categorical(
        _question(key, dimension), [False, True]
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
