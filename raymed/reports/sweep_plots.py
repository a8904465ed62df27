"""The plots of a sweep. Each function returns Plotly figures, or in words why there are none."""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from raymed.reports.sweep_results import Importances, TrialResult
from raymed.reports.value_axes import (
    MISSING,
    axis_position,
    categories,
    category,
    lies_off_axis,
    numeric_axis,
    stand_in,
    value_axis,
)
from raymed.sections import Dimension
from raymed.training.checkpoint import Checkpoint
from raymed.training.observer import Row

Plots = list[go.Figure] | str
Space = Mapping[str, Dimension]

BEST, COMPLETED, FAINT = "#e8590c", "#1864ab", "#9aa5b1"
OTHERS = "Blues"
FONT = {"family": "system-ui, sans-serif", "size": 13, "color": "#1b1b1b"}
MARGIN = {"l": 60, "r": 20, "t": 30, "b": 50}
TALL, SMALL = 420, 300  # pixels


def evaluated(trials: Sequence[TrialResult]) -> list[TrialResult]:
    """The trials whose final objectives are known, in the order of their numbers."""
    return sorted((t for t in trials if t.evaluated and t.objectives), key=lambda t: t.number)


def too_few(needed: int, trials: int) -> str:
    """Why a plot of ``trials`` completed trials is not drawn."""
    return f"Needs at least {needed} completed trials; there are {trials} so far."


def history_plot(trials: Sequence[TrialResult], name: str, maximize: bool) -> Plots:
    """The objective of each completed trial, the best so far, and the best epoch of the others.

    Args:
        trials: All started trials.
        name: Label of the objective.
        maximize: Whether a greater value is better.
    """
    done = evaluated(trials)
    if not done:
        return too_few(1, 0)
    figure = go.Figure()
    figure.add_scatter(
        x=[trial.number for trial in done],
        y=[trial.objectives[0] for trial in done],
        text=[trial.trial for trial in done],
        mode="markers",
        name="completed",
        marker={"color": COMPLETED, "size": 8},
        hovertemplate=f"%{{text}}<br>{name} %{{y:.4f}}<extra></extra>",
    )
    better = max if maximize else min
    worst = -math.inf if maximize else math.inf
    later = sorted((t for t in trials if t.number >= done[0].number), key=lambda t: t.number)
    values = [t.objectives[0] if t.evaluated and t.objectives else worst for t in later]
    figure.add_scatter(
        x=[trial.number for trial in later],
        y=list(accumulate(values, better)),
        mode="lines",
        name="best so far",
        line={"color": BEST, "shape": "hv"},
        hoverinfo="skip",
    )
    others = [trial for trial in trials if not trial.evaluated and trial.objectives]
    if others:
        figure.add_scatter(
            x=[trial.number for trial in others],
            y=[trial.objectives[0] for trial in others],
            text=[trial.trial for trial in others],
            mode="markers",
            name="not completed: best epoch",
            marker={"color": FAINT, "symbol": "circle-open", "size": 8},
            hovertemplate=f"%{{text}}, not completed<br>{name} %{{y:.4f}}<extra></extra>",
        )
    figure.update_xaxes(title="trial", rangemode="tozero")
    figure.update_yaxes(title=name)
    return [_styled(figure, TALL, legend=True)]


def parallel_plot(trials: Sequence[TrialResult], space: Space, name: str, maximize: bool) -> Plots:
    """A line for each completed trial across the axes of the searched keys."""
    done = evaluated(trials)
    if len(done) < 2:
        return too_few(2, len(done))
    keys = sorted({key for trial in done for key in trial.values})
    axes = [
        numeric_axis([trial.objectives[0] for trial in done]),
        *(value_axis(space[key], [t.values.get(key, MISSING) for t in done]) for key in keys),
    ]
    figure = go.Figure()
    for row in range(len(done)):
        heights = [axis.heights[row] for axis in axes]
        # The first axis is the objective's own, so no colour bar is needed beside it.
        good = heights[0] if maximize else 1 - heights[0]
        figure.add_scatter(
            x=list(range(len(axes))),
            y=heights,
            customdata=[
                [key, axis.texts[row]] for key, axis in zip([name, *keys], axes, strict=True)
            ],
            mode="lines",
            line={"color": _shades([good])[0], "width": 1.5},
            opacity=0.8,
            hovertemplate="%{customdata[0]}: %{customdata[1]}<extra></extra>",
        )
    for place, axis in enumerate(axes):
        figure.add_shape(
            type="line", x0=place, x1=place, y0=0, y1=1, line={"color": "#888"}, layer="below"
        )
        for height, text in axis.ticks:
            figure.add_annotation(
                x=place,
                y=height,
                text=text,
                showarrow=False,
                xanchor="right",
                xshift=-4,
                font={"size": 10, "color": "#555"},
            )
    figure.update_xaxes(
        tickvals=list(range(len(axes))),
        ticktext=[name, *(key.replace(".", ".<br>") for key in keys)],
        range=[-0.2, len(axes) - 0.8],
        showgrid=False,
        zeroline=False,
    )
    figure.update_yaxes(range=[-0.08, 1.08], visible=False, fixedrange=True)
    return [_styled(figure, TALL).update_layout(hovermode="closest")]


def slice_plots(trials: Sequence[TrialResult], space: Space, name: str) -> Plots:
    """The completed trials' objective over each searched key."""
    done = evaluated(trials)
    if len(done) < 2:
        return too_few(2, len(done))
    values = [trial.objectives[0] for trial in done]
    room = 0.05 * (max(values) - min(values)) or 0.1
    figures = []
    for key, dimension in space.items():
        tried = [trial for trial in done if key in trial.values]
        if not tried:
            continue
        figure = go.Figure()
        figure.add_scatter(
            x=[axis_position(dimension, trial.values[key]) for trial in tried],
            y=[trial.objectives[0] for trial in tried],
            text=[trial.trial for trial in tried],
            customdata=[_short(trial.values[key]) for trial in tried],
            mode="markers",
            marker={
                "color": [trial.number for trial in tried],
                "size": 8,
                "line": {"width": 0.5, "color": "grey"},
                "showscale": False,
                "colorscale": _shades([0, 1]),
            },
            hovertemplate=f"%{{text}}<br>{key} %{{customdata}}<br>{name} %{{y:.4f}}<extra></extra>",
        )
        figure.update_xaxes(title=key, **_slice_axis(dimension))
        figure.update_yaxes(title=name, range=[min(values) - room, max(values) + room])
        figures.append(_styled(figure, SMALL))
    return figures


def importance_plot(importances: Importances | str) -> tuple[Plots, str]:
    """How much each searched key decides whether a trial is among the best.

    Returns:
        The plot, and a note on which trials it compares.
    """
    if isinstance(importances, str):
        return importances, ""
    keys = list(importances.shares)[::-1]
    shares = [importances.shares[key] for key in keys]
    figure = go.Figure(
        go.Bar(
            x=shares,
            y=keys,
            orientation="h",
            text=[f"{share:.2f}" for share in shares],
            textposition="outside",
            cliponaxis=False,
            marker={"color": COMPLETED},
            hovertemplate="%{y}: %{x:.3f}<extra></extra>",
        )
    )
    figure.update_xaxes(title="share of the importance", rangemode="tozero")
    figure.update_yaxes(automargin=True, ticksuffix="  ")
    note = (
        f"By PED-ANOVA: what separates the best {importances.best} of {importances.trials} "
        "completed trials from the rest."
    )
    return [_styled(figure, 90 + 32 * len(keys), right=60)], note


def learning_plot(histories: Mapping[str, Sequence[Row]], measure: str, name: str) -> Plots:
    """A trial's metric after each epoch, one line per trial.

    Args:
        histories: Rows of metrics by trial, from the best trial to the worst.
        measure: The metric to draw.
        name: Label of the metric.
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
    """CIDEr over the stop threshold, one line per trial, with a point where the trial decodes.

    Where several M were tried, the line shows the best of them at each threshold.

    Args:
        checkpoints: The best checkpoint of each trial, from the best trial to the worst.
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
        return "No checkpoint has a curve: only systems that plan a report's sentences do."
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


def pareto_plots(trials: Sequence[TrialResult], names: Sequence[str]) -> Plots:
    """The first objective against each of the others; the Pareto front stands out.

    Args:
        trials: All started trials.
        names: Labels of the objectives.
    """
    done = evaluated(trials)
    if not done:
        return too_few(1, 0)
    figures = []
    for other in range(1, len(names)):
        figure = go.Figure()
        for front in (False, True):
            shown = [trial for trial in done if trial.pareto == front]
            figure.add_scatter(
                x=[trial.objectives[0] for trial in shown],
                y=[trial.objectives[other] for trial in shown],
                text=[trial.trial for trial in shown],
                mode="markers",
                name="Pareto front" if front else "dominated",
                marker={"color": BEST if front else FAINT, "size": 10 if front else 8},
                hovertemplate=f"%{{text}}<br>{names[0]} %{{x:.4g}}<br>{names[other]} %{{y:.4g}}"
                "<extra></extra>",
            )
        figure.update_xaxes(title=names[0])
        figure.update_yaxes(title=names[other])
        figures.append(_styled(figure, TALL, legend=True))
    return figures


def _lines(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], across: str, up: str
) -> go.Figure:
    """Lines from the best trial, which stands out, to the worst, which is the palest."""
    shades = _shades([1 - rank / len(lines) for rank in range(len(lines))])
    figure = go.Figure()
    # What is drawn last lies on top.
    for rank, (trial, (x, y)) in reversed(list(enumerate(lines.items()))):
        figure.add_scatter(
            x=x,
            y=y,
            name=trial,
            mode="lines+markers" if len(x) < 2 else "lines",
            line={
                "color": BEST if rank == 0 else shades[rank],
                "width": 3 if rank == 0 else 1.5,
            },
            hovertemplate=f"{trial}<br>{across} %{{x:.4g}}<br>{up} %{{y:.4f}}<extra></extra>",
        )
    figure.update_xaxes(title=across)
    figure.update_yaxes(title=up)
    return _styled(figure, TALL)


def _styled(figure: go.Figure, height: int, right: int = 20, legend: bool = False) -> go.Figure:
    """Give a figure the page's look: the page has its own headings and decides on the width."""
    return figure.update_layout(
        template="plotly_white",
        font=FONT,
        height=height,
        margin=MARGIN | {"r": right},
        showlegend=legend,
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        hoverlabel={"align": "left"},
    )


def _slice_axis(dimension: Dimension) -> dict[str, Any]:
    """Layout of an axis over one searched key."""
    if dimension.choice:
        names = categories(dimension)
        return {"type": "category", "categoryorder": "array", "categoryarray": names}
    if not dimension.log_uniform:
        return {}
    low, high = dimension.log_uniform
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    # Ticks at 1 and 3, or at 1 alone where there would be too many.
    steps = (1, 3) if len(decades) < 5 else (1,)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    texts_at = {tick: f"{tick:g}" for tick in ticks if low <= tick <= high}
    if lies_off_axis(dimension, dimension.or_value):
        low = stand_in(dimension)
        texts_at[low] = f"{dimension.or_value:g}"
    room = (high / low) ** 0.05
    return {
        "type": "log",
        "tickvals": list(texts_at),
        "ticktext": list(texts_at.values()),
        "tickangle": 0,
        "range": [math.log10(low / room), math.log10(high * room)],
    }


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else category(value)


def _shades(strengths: Sequence[float]) -> list[str]:
    """Colours for strengths from 0, pale but visible on white, to 1, dark."""
    shades: list[str] = sample_colorscale(OTHERS, [0.3 + 0.65 * one for one in strengths])
    return shades
