"""How much each searched key decides whether a trial is among the best, by PED-ANOVA."""

import math

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import StudyDirection
from optuna.trial import TrialState

from raymed.reports.sweep_plots import too_few
from raymed.reports.sweep_results import Importances
from raymed.reports.value_axes import lies_off_axis, stand_in
from raymed.sections import Dimension
from raymed.tuning.space import Space, to_values

TOP = 5
"""PED-ANOVA compares the best trials with the rest; with fewer best trials it is guesswork."""
ENOUGH = 2 * TOP


def importances(study: optuna.Study, space: Space) -> Importances | str:
    """Importances of the searched keys for the first objective, or why there are none."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len({key for trial in trials for key in to_values(trial.params, space)}) < 2:
        return "Importances compare searched keys, and there is only one."
    if len(trials) < ENOUGH:
        return too_few(ENOUGH, len(trials))
    share = max(0.1, TOP / len(trials))
    top = math.ceil(share * len(trials))
    maximize = study.directions[0] == StudyDirection.MAXIMIZE
    values = sorted((float(trial.values[0]) for trial in trials), reverse=maximize)
    if values[top - 1] == values[-1]:
        return f"More than {len(trials) - top} completed trials are equally bad."
    evaluator = PedAnovaImportanceEvaluator(target_quantile=share)
    shares = get_param_importances(one_parameter_per_key(study, space), evaluator=evaluator)
    return Importances(shares, top, len(trials))


def one_parameter_per_key(study: optuna.Study, space: Space) -> optuna.Study:
    """A copy in memory of a study's first objective, in which each searched key is one parameter.

    Optuna knows a key with ``or`` as two parameters (see `raymed.tuning.space`). A value of ``or``
    that has no place on the key's logarithmic axis is replaced by `stand_in`.
    """
    copy = optuna.create_study(direction=study.directions[0])
    for trial in study.get_trials(states=(TrialState.COMPLETE,)):
        values, given = to_values(trial.params, space), trial.distributions
        trial.params = {
            key: stand_in(space[key]) if lies_off_axis(space[key], value) else value
            for key, value in values.items()
        }
        trial.distributions = {key: _distribution(space[key], given.get(key)) for key in values}
        trial.values = trial.values[:1]
        copy.add_trial(trial)
    return copy


def _distribution(dimension: Dimension, given: BaseDistribution | None) -> BaseDistribution:
    """The distribution of a searched key, its value of ``or`` included."""
    off = dimension.or_value
    if dimension.choice:
        return CategoricalDistribution(dimension.extremes())
    if off is None:
        assert given
        return given
    bounds = dimension.uniform or dimension.log_uniform or dimension.integer
    assert bounds
    if lies_off_axis(dimension, off):
        off = stand_in(dimension)
    low, high = min(*bounds, off), max(*bounds, off)
    if dimension.integer:
        return IntDistribution(int(low), int(high))
    return FloatDistribution(low, high, log=dimension.log_uniform is not None)
