"""The plots of a sweep, on results made up for them."""

from typing import Any

import pytest

from raymed.reports import sweep_plots as plots
from raymed.reports.sweep_results import Importances, TrialResult
from raymed.reports.value_axes import MISSING, value_axis
from raymed.sections import Dimension


def trial(number: int, value: float | None, evaluated: bool = True, **values: Any) -> TrialResult:
    return TrialResult(
        number=number,
        trial=f"trial-{number:03d}",
        values=values,
        state="completed" if evaluated else "unfinished",
        evaluated=evaluated,
        epochs=1,
        best={} if value is None else {"score": value},
        objectives=() if value is None else (value,),
        pareto=False,
        seconds=1.0,
    )


def test_importances_are_drawn_from_the_least_to_the_greatest() -> None:
    shares = {"decides": 0.75, "idle": 0.25}
    (figure,), note = plots.importance_plot(Importances(shares, 5, 40))
    assert dict(zip(figure.data[0].y, figure.data[0].x, strict=True)) == shares
    assert list(figure.data[0].y) == ["idle", "decides"]
    assert note == "By PED-ANOVA: what separates the best 5 of 40 completed trials from the rest."
    assert plots.importance_plot("too few") == ("too few", "")


def test_plots_of_no_trial_say_so() -> None:
    space = {"a": Dimension(uniform=(0, 1))}
    for drawn in (
        plots.history_plot([], "CIDEr", True),
        plots.parallel_plot([], space, "CIDEr", True),
        plots.slice_plots([], space, "CIDEr"),
        plots.pareto_plots([], ["CIDEr", "seconds"]),
    ):
        assert isinstance(drawn, str)
        assert "there are 0 so far" in drawn
    assert plots.learning_plot({"trial-000": []}, "score", "CIDEr") == (
        "No trial has finished an epoch."
    )
    assert isinstance(plots.threshold_plot({}), str)


@pytest.mark.parametrize(
    ("maximize", "best"), [(True, [0.3, 0.3, 0.3, 0.5]), (False, [0.3, 0.3, 0.1, 0.1])]
)
def test_the_best_so_far_counts_completed_trials_only(maximize: bool, best: list[float]) -> None:
    trials = [trial(4, 0.5), trial(2, 0.9, evaluated=False), trial(0, None, evaluated=False)]
    trials += [trial(3, 0.1), trial(1, 0.3)]
    (figure,) = plots.history_plot(trials, "CIDEr", maximize)
    completed, so_far, others = figure.data
    assert list(zip(completed.x, completed.y, strict=True)) == [(1, 0.3), (3, 0.1), (4, 0.5)]
    assert (list(so_far.x), list(so_far.y)) == ([1, 2, 3, 4], best)
    assert (list(others.x), list(others.y)) == ([2], [0.9])


def test_an_axis_has_a_place_for_every_value() -> None:
    def axis(dimension: dict[str, Any], *values: Any) -> tuple[Any, Any, dict[str, float]]:
        found = value_axis(Dimension.model_validate(dimension), values)
        return found.heights, found.texts, {text: height for height, text in found.ticks}

    heights, texts, ticks = axis({"uniform": (0, 9)}, 2.0, 4.0, 3.0)
    assert heights == [0, 1, 0.5]
    assert texts == ["2", "4", "3"]
    assert ticks == {"2": 0, "2.5": 0.25, "3": 0.5, "3.5": 0.75, "4": 1}

    # A logarithmic axis is written in powers of ten, and what it lacks stands at its lower end.
    heights, texts, ticks = axis({"log_uniform": (1, 100), "or": 0}, 0, 10.0, 100.0)
    low = -2 * 0.15
    assert heights == pytest.approx([0, (1 - low) / (2 - low), 1])
    assert texts == ["0", "10", "100"]
    assert ticks == pytest.approx({"0": 0, "1": -low / (2 - low), "10": heights[1], "100": 1})

    # What a trial was not asked for lies below all that others were.
    heights, texts, ticks = axis({"integer": (2, 6)}, MISSING, 2, 6)
    assert heights == pytest.approx([0, 0.12, 1])
    assert texts == ["None", "2", "6"]
    assert ticks["None"] == 0

    # Text is escaped, because Plotly reads some HTML; numbers are in order.
    heights, texts, ticks = axis({"choice": ("<b>x</b>", None, "y & z")}, "y & z", None, MISSING)
    assert texts == ["y &amp; z", "null", "None"]
    assert heights == [1, 0.5, 0]
    heights, _, ticks = axis({"choice": (4, 2)}, 4, 2, 4)
    assert heights == [1, 0, 1]
    assert axis({"choice": (4, 2)}, 4)[0] == axis({"uniform": (0, 9)}, 4.0)[0] == [0.5]


def test_lines_join_the_axes_in_the_order_of_their_keys() -> None:
    space = {"b.key": Dimension(uniform=(0, 1)), "a.key": Dimension(choice=("x", "y"))}
    trials = [
        trial(1, 0.5, **{"b.key": 0.25, "a.key": "y"}),
        trial(0, 0.1, **{"b.key": 0.75}),
        trial(2, 0.9, evaluated=False, **{"b.key": 0.0}),
    ]
    (figure,) = plots.parallel_plot(trials, space, "CIDEr", True)
    assert list(figure.layout.xaxis.ticktext) == ["CIDEr", "a.<br>key", "b.<br>key"]
    first, second = figure.data
    assert (list(first.y), list(second.y)) == ([0, 0, 1], [1, 1, 0])
    assert [list(one) for one in first.customdata] == [
        ["CIDEr", "0.1"],
        ["a.key", "None"],
        ["b.key", "0.75"],
    ]
