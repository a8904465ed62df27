"""Tune's search algorithm over a sweep's Optuna study: interrupted trials first, then new ones.

Tune's own OptunaSearch only asks for new trials, and tells those that are stopped early as
complete.
"""

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from raymed.sections import TuneConfig
from raymed.training.observer import Row
from raymed.tuning.space import draw_untried, propose, proposed, same, to_params
from raymed.tuning.study import REASON, REPEATED, asked, build_sampler, objectives, started_trials
from raymed.tuning.trial import DECIDED, FAILURE, LOST, NUMBER, at_best, trial_name

History = Callable[[int], Sequence[Row]]
"""The epochs of a trial, by its number, that lie on the disk."""
PATIENCE = 5
"""Proposals in a row that were tried before, after which the sampler is not asked again."""


class StudySearch(Searcher):
    """Proposes what the study has, tells it what came of it.

    Args:
        study: of the sweep.
        config: of the search.
        epochs: that a trial trains if it is not stopped.
        history: of the trials that go on from an earlier start.
        remind: told of the epochs of these that were decided on: Tune's id of the trial, epochs.
    """

    def __init__(
        self,
        study: optuna.Study,
        config: TuneConfig,
        epochs: int,
        history: History,
        replay: Callable[[str, Sequence[Row]], None],
    ) -> None:
        self.names = list(objectives(config))
        super().__init__(at_best(self.names[0]), objectives(config)[self.names[0]])
        self.study = study
        self.config = config
        self.epochs = epochs
        self.history = history
        self.replay = replay
        trials = asked(study)
        self.number = len(trials)
        self.interrupted = [t for t in trials if t.state == TrialState.RUNNING]
        self.tried = {
            same(proposed(trial.params, config.space)): trial.number
            for trial in started_trials(study)
            if trial.state.is_finished()
        }
        self.asked: dict[str, optuna.Trial] = {}
        self.reported: dict[str, set[int]] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        decided = 0
        reported: set[int] = set()
        trial = self._interrupted()
        if trial is not None:
            reported = set(self.study.get_trials(deepcopy=False)[trial.number].intermediate_values)
            rows = self.history(trial.number)
            # Whether its last epoch was to be followed by another was perhaps not decided yet.
            decided = max(len(rows) - 1, 0)
            self.replay(trial_id, rows[:decided])
        else:
            trial = self._new()
        if trial is None:
            return str(Searcher.FINISHED)
        self.asked[trial_id] = trial
        self.reported[trial_id] = reported
        return {**propose(trial, self.config.space), NUMBER: trial.number, DECIDED: decided}

    def _interrupted(self) -> optuna.Trial | None:
        """The next trial that an earlier start has left, if there is any."""
        while self.interrupted:
            frozen = self.interrupted.pop(0)
            self.study.sampler = build_sampler(self.config, frozen.number)
            trial = optuna.Trial(self.study, frozen._trial_id)
            if not self._is_repeated(trial):
                return trial
        return None

    def _new(self) -> optuna.Trial | None:
        """The next proposal that no trial has had; None if there is none left.

        Where the sampler proposes again and again what was tried, a point is drawn for it.
        """
        for repeats in count():
            if repeats >= PATIENCE and not self.study.get_trials(
                deepcopy=False, states=(TrialState.WAITING,)
            ):
                space = self.config.space
                point = draw_untried(space, self.tried, (self.config.seed, self.number))
                if point is None:
                    return None
                self.study.enqueue_trial(to_params(point, space))
            self.study.sampler = build_sampler(self.config, self.number)
            self.number += 1
            trial = self.study.ask()
            if not self._is_repeated(trial):
                return trial
        raise AssertionError

    def _is_repeated(self, trial: optuna.Trial) -> bool:
        """Whether another trial has the same values; then it is told so, and is over.

        To the study it is a failed one: the sampler is to learn nothing from it, neither what it
        knows already, nor that a point is as good as two.
        """
        values = same(propose(trial, self.config.space))
        first = self.tried.setdefault(values, trial.number)
        if first == trial.number:
            return False
        trial.set_user_attr(REPEATED, trial_name(first))
        self.study.tell(trial, state=TrialState.FAIL)
        return True

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        # Optuna takes no values of single epochs where there are several objectives.
        if len(self.names) == 1 and not {FAILURE, LOST} & result.keys():
            epoch = int(result["epoch"])
            if epoch not in self.reported[trial_id]:
                self.reported[trial_id].add(epoch)
                self.asked[trial_id].report(result[at_best(self.names[0])], epoch)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        trial = self.asked[trial_id]
        self._tell(trial_id, trial, result, error)
        del self.asked[trial_id], self.reported[trial_id]

    def _tell(
        self, trial_id: str, trial: optuna.Trial, result: dict[str, Any] | None, error: bool
    ) -> None:
        if error or not result or LOST in result:
            # It stays running in the study, so that the next start takes it up.
            return
        if FAILURE in result:
            trial.set_user_attr(REASON, result[FAILURE])
            self.study.tell(trial, state=TrialState.FAIL)
            return
        self.on_trial_result(trial_id, result)
        if len(self.names) == 1 and result["epoch"] < self.epochs:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, [result[at_best(name)] for name in self.names])

    def save(self, checkpoint_path: str) -> None:
        # All it knows is in the study; Tune wants a file.
        Path(checkpoint_path).touch()
