"""The plots of a sweep: Optuna's own where it has one, and the curves of its trials.

Each function gives Plotly figures, or says in words why there is nothing to draw.
"""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna import visualization
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from plotly.colors import sample_colorscale

from raymed.sections import Dimension
from raymed.training.checkpoint import Checkpoint
from raymed.training.observer import Row
from raymed.tuning.space import Space, proposed
from raymed.tuning.trial import trial_name

Plots = list[go.Figure] | str

BEST, FAINT = "#e8590c", "#9aa5b1"
OTHERS = "Blues"
FONT = {"family": "system-ui, sans-serif", "size": 13, "color": "#1b1b1b"}
MARGIN = {"l": 60, "r": 20, "t": 30, "b": 50}
TALL, SMALL = 420, 300  # pixels

TOP = 5
"""PED-ANOVA tells the best trials from the rest, and with fewer than so many it is guesswork."""
ENOUGH = 2 * TOP


def readable(study: optuna.Study, space: Space) -> optuna.Study:
    """The study as it is to be read: a copy in memory of its first objective.

    Each searched key is one parameter. Optuna knows a key with ``or`` as two, a question and, where
    it was denied, a value. A value of ``or`` that has no place on the key's logarithmic axis stands
    at `stand_in`. Text is escaped, because Plotly reads some HTML.

    Args:
        study: of the sweep.
        space: of the sweep.
    """
    copy = optuna.create_study(direction=study.directions[0])
    for trial in study.get_trials():
        values = proposed(trial.params, space)
        given = trial.distributions
        trial.params = {
            key: _escaped(stand_in(space[key]) if _has_no_place(space[key], value) else value)
            for key, value in values.items()
        }
        trial.distributions = {key: _distribution(space[key], given.get(key)) for key in values}
        trial.values = trial.values and trial.values[:1]
        copy.add_trial(trial)
    return copy


def stand_in(dimension: Dimension) -> float:
    """Where a value that a logarithmic axis lacks, such as 0, is drawn: a little below the rest."""
    assert dimension.log_uniform
    low, high = dimension.log_uniform
    return low * (low / high) ** 0.15


def completed(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that trained to their end."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def history_plot(study: optuna.Study, name: str, scores: Mapping[str, float]) -> Plots:
    """Value of each completed trial and the best so far; and the best score of stopped ones.

    Args:
        study: of one objective, as `readable` gives it.
        name: of the objective.
        scores: the best value of each trial that reported any, by the trial's name.
    """
    if not completed(study):
        return _too_few(study, 1)
    figure = visualization.plot_optimization_history(study, target_name=name)
    points, best = figure.data[0], figure.data[1]
    points.update(
        name="completed",
        marker={"color": "#1864ab", "size": 8},
        text=[trial_name(number) for number in points.x],
        hovertemplate=f"%{{text}}<br>{name} %{{y:.4f}}<extra></extra>",
    )
    best.update(name="best so far", line={"color": BEST, "shape": "hv"}, hoverinfo="skip")
    stopped = [
        (trial.number, trial_name(trial.number), scores[trial_name(trial.number)])
        for trial in study.get_trials(deepcopy=False)
        if trial.state != TrialState.COMPLETE and trial_name(trial.number) in scores
    ]
    if stopped:
        numbers, names, values = zip(*stopped, strict=True)
        figure.add_scatter(
            x=numbers,
            y=values,
            text=names,
            mode="markers",
            name="not completed: its best epoch",
            marker={"color": FAINT, "symbol": "circle-open", "size": 8},
            hovertemplate=f"%{{text}}, not completed<br>{name} %{{y:.4f}}<extra></extra>",
        )
    figure.update_xaxes(title="trial", rangemode="tozero")
    return [_styled(figure, TALL, legend=True)]


def parallel_plot(study: optuna.Study, space: Space, name: str) -> Plots:
    """A line for each completed trial over the axes of the searched keys."""
    if len(completed(study)) < 2:
        return _too_few(study, 2)
    figure = visualization.plot_parallel_coordinate(study, target_name=name)
    keys = sorted({key for trial in completed(study) for key in trial.params})
    labels = [name, *(key.replace(".", ".<br>") for key in keys)]
    # Optuna cuts long names short, and knows nothing of what stands in for a value.
    figure.layout.xaxis.ticktext = labels
    texts = [{}, *(_stand_in_text(space[key]) for key in keys)]
    for note in figure.layout.annotations:
        note.text = texts[note.x].get(note.text, note.text)
    for line in figure.data[:-1]:
        values = [text for _, text in line.customdata]
        line.customdata = [
            [key, known.get(value, value)]
            for key, known, value in zip([name, *keys], texts, values, strict=True)
        ]
        # The first axis is the objective's own, so it needs no bar of colours beside it.
        good = line.y[0] if _maximised(study) else 1 - line.y[0]
        line.update(line={"color": _shades([good])[0], "width": 1.5}, opacity=0.8)
    return [_styled(figure.update_traces(marker={"showscale": False}), TALL)]


def slice_plots(study: optuna.Study, space: Space, name: str) -> Plots:
    """For each searched key the completed trials' values over it."""
    if len(completed(study)) < 2:
        return _too_few(study, 2)
    searched = {key for trial in completed(study) for key in trial.params}
    figures = []
    for key in (key for key in space if key in searched):
        figure = visualization.plot_slice(study, params=[key], target_name=name)
        (points,) = figure.data
        points.update(
            text=[trial_name(number) for number in points.marker.color],
            hovertemplate=f"%{{text}}<br>{key} %{{x}}<br>{name} %{{y:.4f}}<extra></extra>",
        )
        points.marker.update(size=8, showscale=False, colorscale=_shades([0, 1]))
        if space[key].log_uniform:
            figure.update_xaxes(**_log_ticks(space[key]))
        if _has_no_place(space[key], space[key].or_value):
            at = stand_in(space[key])
            shown = [f"{space[key].or_value if x == at else x:.4g}" for x in points.x]
            points.update(
                customdata=shown, hovertemplate=points.hovertemplate.replace("{x}", "{customdata}")
            )
        figures.append(_styled(figure, SMALL))
    values = [float(trial.values[0]) for trial in completed(study)]
    room = 0.05 * (max(values) - min(values)) or 0.1
    for figure in figures:
        figure.update_yaxes(range=[min(values) - room, max(values) + room])
    return figures


def importance_plot(study: optuna.Study) -> tuple[Plots, str]:
    """PED-ANOVA: how much each searched key decides whether a trial is among the best.

    Returns:
        The plot, and which trials it compares.
    """
    trials = completed(study)
    if len({key for trial in trials for key in trial.params}) < 2:
        return "Importances compare searched keys, and there is only one.", ""
    if len(trials) < ENOUGH:
        return _too_few(study, ENOUGH), ""
    share = max(0.1, TOP / len(trials))
    top = math.ceil(share * len(trials))
    values = sorted((float(trial.values[0]) for trial in trials), reverse=_maximised(study))
    if values[top - 1] == values[-1]:
        return f"More than {len(trials) - top} completed trials are equally bad.", ""
    evaluator = PedAnovaImportanceEvaluator(target_quantile=share)
    shares = get_param_importances(study, evaluator=evaluator)
    keys = list(reversed(shares))
    figure = go.Figure(
        go.Bar(
            x=[shares[key] for key in keys],
            y=keys,
            orientation="h",
            text=[f"{shares[key]:.2f}" for key in keys],
            textposition="outside",
            cliponaxis=False,
            marker={"color": "#1864ab"},
            hovertemplate="%{y}: %{x:.3f}<extra></extra>",
        )
    )
    figure.update_xaxes(title="share of the importance", rangemode="tozero")
    figure.update_yaxes(automargin=True, ticksuffix="  ")
    note = (
        f"By PED-ANOVA: what tells the best {top} of {len(trials)} completed trials from the rest."
    )
    return [_styled(figure, 90 + 32 * len(keys), right=60)], note


def learning_plot(histories: Mapping[str, Sequence[Row]], measure: str, name: str) -> Plots:
    """A trial's value after each epoch, a line for each trial.

    Args:
        histories: rows of metrics by trial, from the best trial to the worst.
        measure: the metric that is drawn.
        name: of the metric.
    """
    lines = {
        trial: ([row["epoch"] for row in rows], [row[measure] for row in rows])
        for trial, rows in histories.items()
        if rows
    }
    if not lines:
        return "No trial has finished an epoch."
    figure = _lines(lines, "epoch", name)
    figure.update_xaxes(dtick=1 if max(len(x) for x, _ in lines.values()) < 20 else None)
    return [figure]


def threshold_plot(checkpoints: Mapping[str, Checkpoint]) -> Plots:
    """CIDEr over the stop threshold, a line for each trial, with a point where it decodes.

    Where several M were tried, the line is of the best of them at each threshold.

    Args:
        checkpoints: of each trial, from the best trial to the worst.
    """
    lines = {}
    for trial, checkpoint in checkpoints.items():
        best: dict[float, float] = {}
        for row in checkpoint.curve:
            if "stop_threshold" in row:
                at = row["stop_threshold"]
                best[at] = max(best.get(at, -math.inf), row["cider"])
        if best:
            lines[trial] = (sorted(best), [best[at] for at in sorted(best)])
    if not lines:
        return "No checkpoint has a curve: it takes a system that plans a report's sentences."
    figure = _lines(lines, "stop threshold", "CIDEr")
    colours = {line.name: line.line.color for line in figure.data}
    for trial in reversed(lines):
        checkpoint = checkpoints[trial]
        figure.add_scatter(
            x=[checkpoint.config.generation.stop_threshold],
            y=[checkpoint.history[-1]["cider"]],
            mode="markers",
            marker={"color": colours[trial], "size": 8},
            hovertemplate=f"{trial} decodes here<br>stop threshold %{{x:.4g}}<br>CIDEr %{{y:.4f}}"
            "<extra></extra>",
        )
    figure.update_xaxes(range=[0, 1])
    return [figure]


def pareto_plots(study: optuna.Study, names: Sequence[str]) -> Plots:
    """The completed trials by the first objective and each other one; the Pareto front stands out.

    Args:
        study: with all its objectives.
        names: of the objectives.
    """
    if not completed(study):
        return _too_few(study, 1)
    figures = []
    for other in range(1, len(names)):
        shown = [names[0], names[other]]
        figure = visualization.plot_pareto_front(
            study,
            target_names=shown,
            targets=lambda trial, other=other: (trial.values[0], trial.values[other]),
        )
        for points, kind in zip(figure.data, ("dominated", "Pareto front"), strict=True):
            front = kind == "Pareto front"
            points.update(
                name=kind,
                showlegend=True,
                text=[trial_name(number) for number in points.marker.color or ()],
                hovertemplate=f"%{{text}}<br>{shown[0]} %{{x:.4g}}<br>{shown[1]} %{{y:.4g}}"
                "<extra></extra>",
                marker={"color": BEST if front else FAINT, "size": 10 if front else 8},
            )
            points.marker.update(showscale=False, colorbar=None, colorscale=None)
        figures.append(_styled(figure, TALL, legend=True))
    return figures


def _lines(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], across: str, up: str
) -> go.Figure:
    """Lines from the best trial, which stands out, to the worst, the palest."""
    shades = _shades([1 - place / len(lines) for place in range(len(lines))])
    figure = go.Figure()
    # What is drawn last lies on top.
    for place, (trial, (x, y)) in reversed(list(enumerate(lines.items()))):
        figure.add_scatter(
            x=x,
            y=y,
            name=trial,
            mode="lines+markers" if len(x) < 2 else "lines",
            line={
                "color": BEST if place == 0 else shades[place],
                "width": 3 if place == 0 else 1.5,
            },
            hovertemplate=f"{trial}<br>{across} %{{x:.4g}}<br>{up} %{{y:.4f}}<extra></extra>",
        )
    figure.update_xaxes(title=across)
    figure.update_yaxes(title=up)
    return _styled(figure, TALL)


def _styled(figure: go.Figure, height: int, right: int = 20, legend: bool = False) -> go.Figure:
    """The page's look: a heading stands above each plot, and the page decides on its width."""
    return figure.update_layout(
        template="plotly_white",
        title=None,
        font=FONT,
        height=height,
        width=None,
        margin=MARGIN | {"r": right},
        showlegend=legend,
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        hoverlabel={"align": "left"},
    )


def _distribution(dimension: Dimension, given: BaseDistribution | None) -> BaseDistribution:
    """Of a searched key with the value of ``or`` in it."""
    extra = [] if dimension.or_value is None else [dimension.or_value]
    if dimension.choice:
        return CategoricalDistribution([_escaped(one) for one in (*dimension.choice, *extra)])
    if dimension.or_value is None:
        assert given
        return given
    bounds = dimension.uniform or dimension.log_uniform or dimension.integer
    assert bounds
    if _has_no_place(dimension, dimension.or_value):
        extra = [stand_in(dimension)]
    low, high = min(*bounds, *extra), max(*bounds, *extra)
    if dimension.integer:
        return IntDistribution(int(low), int(high))
    return FloatDistribution(low, high, log=dimension.log_uniform is not None)


def _has_no_place(dimension: Dimension, value: Any) -> bool:
    return dimension.log_uniform is not None and value is not None and value <= 0


def _stand_in_text(dimension: Dimension) -> dict[str, str]:
    """How Optuna writes the stand-in, if there is one, and what is to be read there."""
    if not _has_no_place(dimension, dimension.or_value):
        return {}
    return {f"{stand_in(dimension):.3g}": f"{dimension.or_value:g}"}


def _log_ticks(dimension: Dimension) -> dict[str, Any]:
    """An axis over all of the range, with the ticks 1 and 3, or only 1 where these are many."""
    assert dimension.log_uniform
    low, high = dimension.log_uniform
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 3) if len(decades) < 5 else (1,)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    texts = {tick: f"{tick:g}" for tick in ticks if low <= tick <= high}
    if _has_no_place(dimension, dimension.or_value):
        low = stand_in(dimension)
        texts[low] = f"{dimension.or_value:g}"
    room = (high / low) ** 0.05
    ends = [math.log10(low / room), math.log10(high * room)]
    shown = {"tickvals": list(texts), "ticktext": list(texts.values()), "tickangle": 0}
    return {**shown, "range": ends}


def _shades(places: Sequence[float]) -> list[str]:
    """Colours for places from 0, pale but still to be seen on white, to 1, dark."""
    shades: list[str] = sample_colorscale(OTHERS, [0.3 + 0.65 * place for place in places])
    return shades


def _escaped(value: Any) -> Any:
    return html.escape(value, quote=False) if isinstance(value, str) else value


def _maximised(study: optuna.Study) -> bool:
    return study.directions[0] == StudyDirection.MAXIMIZE


def _too_few(study: optuna.Study, needed: int) -> str:
    return f"Needs {needed} completed trials at least; there are {len(completed(study))} so far."
