"""The plots of a sweep, on studies made up for them."""

from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial

from raymed.reports import sweep_plots as plots
from raymed.sections import Dimension
from raymed.tuning.space import propose


def study(
    values: list[float], distributions: dict[str, Any], params: list[dict[str, Any]]
) -> optuna.Study:
    made = optuna.create_study(direction="maximize")
    for value, one in zip(values, params, strict=True):
        asked = {key: distributions[key] for key in one}
        made.add_trial(create_trial(value=value, params=one, distributions=asked))
    return made


def test_importances_find_the_key_that_decides() -> None:
    floats = {"decides": FloatDistribution(0, 1), "idle": FloatDistribution(0, 1)}
    spread = [(number * 0.618) % 1 for number in range(40)]
    params = [{"decides": x, "idle": (7 * x) % 1} for x in spread]
    (figure,), note = plots.importance_plot(study(spread, floats, params))
    shares = dict(zip(figure.data[0].y, figure.data[0].x, strict=True))
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["decides"] > 0.6
    assert note == "By PED-ANOVA: what tells the best 5 of 40 completed trials from the rest."


@pytest.mark.parametrize(
    ("count", "keys", "values", "words"),
    [
        (9, ("a", "b"), range(9), "Needs 10 completed trials at least; there are 9 so far."),
        (12, ("a",), range(12), "there is only one"),
        (12, ("a", "b"), [1, *[0] * 11], "More than 7 completed trials are equally bad."),
    ],
)
def test_importances_that_would_be_guesswork_are_not_drawn(
    count: int, keys: tuple[str, ...], values: Any, words: str
) -> None:
    floats = {key: FloatDistribution(0, 1) for key in keys}
    params = [dict.fromkeys(keys, number / count) for number in range(count)]
    drawn, _ = plots.importance_plot(study([float(v) for v in values], floats, params))
    assert isinstance(drawn, str)
    assert words in drawn


def test_plots_of_no_trial_say_so() -> None:
    empty = optuna.create_study(direction="maximize")
    space = {"a": Dimension(uniform=(0, 1))}
    for drawn in (
        plots.history_plot(empty, "CIDEr", {}),
        plots.parallel_plot(empty, space, "CIDEr"),
        plots.slice_plots(empty, space, "CIDEr"),
        plots.pareto_plots(empty, ["CIDEr", "seconds"]),
    ):
        assert isinstance(drawn, str)
        assert "there are 0 so far" in drawn
    assert plots.learning_plot({"trial-000": []}, "score", "CIDEr") == (
        "No trial has finished an epoch."
    )
    assert isinstance(plots.threshold_plot({}), str)


def test_a_readable_study_has_one_parameter_for_each_key_and_escaped_text() -> None:
    space = {
        "text": Dimension(choice=("<b>x</b>", "y & z")),
        "plain": Dimension.model_validate({"uniform": (0.5, 1), "or": 0}),
        "log": Dimension.model_validate({"log_uniform": (1, 10), "or": 100}),
        "zero": Dimension.model_validate({"log_uniform": (1, 100), "or": 0}),
        "whole": Dimension.model_validate({"integer": (2, 5), "or": 9}),
    }
    asked = {key: {} for key in space}
    made = optuna.create_study(directions=["maximize", "minimize"])
    for point in (
        {"text": "<b>x</b>", "plain": 0, "log": 100, "zero": 0, "whole": 9},
        {"text": "y & z", "plain": 0.75, "log": 5, "zero": 10, "whole": 4},
    ):
        fixed = {"text": point["text"]}
        for key in ("plain", "log", "zero", "whole"):
            other = space[key].or_value
            fixed[f"{key} = {other:g}"] = point[key] == other
            fixed |= {} if point[key] == other else {key: point[key]}
        made.enqueue_trial(fixed)
        trial = made.ask()
        assert propose(trial, space) == point
        made.tell(trial, [1.0, 2.0])
    first, second = plots.readable(made, space).get_trials()
    assert list(first.params) == list(asked)
    assert first.params | {"zero": 0} == {
        "text": "&lt;b&gt;x&lt;/b&gt;",
        "plain": 0,
        "log": 100,
        "zero": 0,
        "whole": 9,
    }
    assert first.params["zero"] == pytest.approx(10 ** (-0.3))
    assert second.params == {"text": "y &amp; z", "plain": 0.75, "log": 5, "zero": 10, "whole": 4}
    assert first.values == [1.0]
    assert isinstance(first.distributions["text"], CategoricalDistribution)
    for key, (low, high) in {"plain": (0, 1), "log": (1, 100), "whole": (2, 9)}.items():
        bounds = first.distributions[key]
        assert (bounds.low, bounds.high) == (low, high)  # type: ignore[attr-defined]
    assert made.get_trials()[0].params["zero = 0"] is True, "the study itself is as it was"
