"""Importances of the searched keys, on studies made up for them."""

from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial

from raymed.reports.sweep_results import Importances
from raymed.sections import Dimension
from raymed.tuning.importance import importances, one_parameter_per_key
from raymed.tuning.space import propose, to_params


def study(values: list[float], params: list[dict[str, float]]) -> optuna.Study:
    made = optuna.create_study(direction="maximize")
    for value, one in zip(values, params, strict=True):
        asked = {key: FloatDistribution(0, 1) for key in one}
        made.add_trial(create_trial(value=value, params=one, distributions=asked))
    return made


def floats(*keys: str) -> dict[str, Dimension]:
    return {key: Dimension(uniform=(0, 1)) for key in keys}


def test_importances_find_the_key_that_decides() -> None:
    spread = [(number * 0.618) % 1 for number in range(40)]
    params = [{"decides": x, "idle": (7 * x) % 1} for x in spread]
    found = importances(study(spread, params), floats("decides", "idle"))
    assert isinstance(found, Importances)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.shares["decides"] > 0.6
    assert (found.best, found.trials) == (5, 40)


@pytest.mark.parametrize(
    ("count", "keys", "values", "words"),
    [
        (9, ("a", "b"), range(9), "Needs at least 10 completed trials; there are 9 so far."),
        (12, ("a",), range(12), "there is only one"),
        (12, ("a", "b"), [1, *[0] * 11], "More than 7 completed trials are equally bad."),
    ],
)
def test_importances_that_would_be_guesswork_are_not_computed(
    count: int, keys: tuple[str, ...], values: Any, words: str
) -> None:
    params = [dict.fromkeys(keys, number / count) for number in range(count)]
    found = importances(study([float(v) for v in values], params), floats(*keys))
    assert isinstance(found, str)
    assert words in found


def test_a_key_with_or_becomes_one_parameter() -> None:
    space = {
        "text": Dimension(choice=("x", "y")),
        "plain": Dimension.model_validate({"uniform": (0.5, 1), "or": 0}),
        "log": Dimension.model_validate({"log_uniform": (1, 10), "or": 100}),
        "zero": Dimension.model_validate({"log_uniform": (1, 100), "or": 0}),
        "whole": Dimension.model_validate({"integer": (2, 5), "or": 9}),
    }
    points: list[dict[str, Any]] = [
        {"text": "x", "plain": 0, "log": 100, "zero": 0, "whole": 9},
        {"text": "y", "plain": 0.75, "log": 5, "zero": 10, "whole": 4},
    ]
    made = optuna.create_study(directions=["maximize", "minimize"])
    for point in points:
        made.enqueue_trial(to_params(point, space))
        trial = made.ask()
        assert propose(trial, space) == point
        made.tell(trial, [1.0, 2.0])
    first, second = one_parameter_per_key(made, space).get_trials()
    assert list(first.params) == list(space)
    assert first.params | {"zero": 0} == points[0]
    assert first.params["zero"] == pytest.approx(10 ** (-0.3))
    assert second.params == points[1]
    assert first.values == [1.0]
    assert isinstance(first.distributions["text"], CategoricalDistribution)
    for key, (low, high) in {"plain": (0, 1), "log": (1, 100), "whole": (2, 9)}.items():
        bounds = first.distributions[key]
        assert (bounds.low, bounds.high) == (low, high)  # type: ignore[attr-defined]
    assert made.get_trials()[0].params["zero = 0"] is True, "the study itself is as it was"
