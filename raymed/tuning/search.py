"""Tune's search algorithm over a sweep's Optuna study: interrupted trials first, then new ones.

Tune's own OptunaSearch cannot resume trials, and records those stopped early as complete.
"""

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from raymed.sections import TrainingConfig, TuneConfig
from raymed.training.observer import Row
from raymed.tuning.space import canonical, draw_untried, propose, to_params, to_values
from raymed.tuning.study import (
    REASON,
    REPEATED,
    build_sampler,
    objectives,
    proposed_trials,
    reopen_trial,
    started_trials,
)
from raymed.tuning.trial import OBJECTIVE, Outcome, Proposal, trial_name

MAX_REPEATS = 5
"""Proposals in a row with values tried before, after which the sampler is not asked again."""


class StudySearch(Searcher):
    """Proposes trials from the study, and records their outcomes in it.

    Args:
        study: The sweep's study.
        config: The search's configuration.
        training: The trials' training section, by which one is finished or was stopped early.
        history: Returns the metrics on disk of the trial with the given number.
        replay: Called for each resumed trial with Tune's id of it and the metrics of its epochs
            that were decided on in an earlier start.
    """

    def __init__(
        self,
        study: optuna.Study,
        config: TuneConfig,
        training: TrainingConfig,
        history: Callable[[int], Sequence[Row]],
        replay: Callable[[str, Sequence[Row]], None],
    ) -> None:
        self.objectives = objectives(config)
        super().__init__(OBJECTIVE, next(iter(self.objectives.values())))
        self.study = study
        self.config = config
        self.training = training
        self.history = history
        self.replay = replay
        trials = proposed_trials(study)
        self.next_number = len(trials)
        self.interrupted = [t.number for t in trials if t.state == TrialState.RUNNING]
        self.tried = {
            canonical(to_values(trial.params, config.space)): trial.number
            for trial in started_trials(study)
            if trial.state.is_finished()
        }
        self.running: dict[str, optuna.Trial] = {}
        """Optuna's trials by Tune's ids."""
        self.reported: dict[str, set[int]] = {}
        """Epochs whose score the study has, by Tune's ids."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        decided: list[Row] = []
        reported: set[int] = set()
        trial = self._next_interrupted()
        if trial is not None:
            reported = set(self.study.get_trials(deepcopy=False)[trial.number].intermediate_values)
            # It may not have been decided yet whether another epoch was to follow the last one.
            decided = list(self.history(trial.number))[:-1]
            self.replay(trial_id, decided)
        else:
            trial = self._next_new()
        if trial is None:
            return str(Searcher.FINISHED)
        self.running[trial_id] = trial
        self.reported[trial_id] = reported
        # Tune lets a trial continue before the search has heard of its last epoch, so the study of
        # a sweep that was killed then lacks it.
        for epoch in range(1, len(decided) + 1):
            self._report_epoch(trial_id, Outcome.of(decided[:epoch]))
        values = propose(trial, self.config.space)
        return Proposal(trial.number, values, len(decided)).to_config()

    def _next_interrupted(self) -> optuna.Trial | None:
        """The next trial that an earlier start left unfinished, if there is one."""
        while self.interrupted:
            number = self.interrupted.pop(0)
            self.study.sampler = build_sampler(self.config, number)
            trial = reopen_trial(self.study, number)
            if not self._reject_if_repeated(trial):
                return trial
        return None

    def _next_new(self) -> optuna.Trial | None:
        """The next proposal with values not tried before; None if there is none left.

        If the sampler keeps proposing what was tried, a random point is drawn instead.
        """
        for repeats in count():
            if repeats >= MAX_REPEATS and not self.study.get_trials(
                deepcopy=False, states=(TrialState.WAITING,)
            ):
                space = self.config.space
                point = draw_untried(space, self.tried, (self.config.seed, self.next_number))
                if point is None:
                    return None
                self.study.enqueue_trial(to_params(point, space))
            self.study.sampler = build_sampler(self.config, self.next_number)
            self.next_number += 1
            trial = self.study.ask()
            if not self._reject_if_repeated(trial):
                return trial
        raise AssertionError

    def _reject_if_repeated(self, trial: optuna.Trial) -> bool:
        """Whether another trial has the same values; if so, this one ends here.

        It ends as failed, so that the sampler learns nothing from it: neither what it knows
        already, nor that one point is worth two.
        """
        values = canonical(propose(trial, self.config.space))
        first = self.tried.setdefault(values, trial.number)
        if first == trial.number:
            return False
        trial.set_user_attr(REPEATED, trial_name(first))
        self.study.tell(trial, state=TrialState.FAIL)
        return True

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        outcome = Outcome.from_result(result)
        if outcome.is_score:
            self._report_epoch(trial_id, outcome)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        # A trial without a proper end stays running in the study, so the next start resumes it.
        if result and not error:
            outcome = Outcome.from_result(result)
            if not outcome.queue_lost:
                self._record_end(trial_id, outcome)
        del self.running[trial_id], self.reported[trial_id]

    def _report_epoch(self, trial_id: str, outcome: Outcome) -> None:
        # Optuna accepts no intermediate values if there are several objectives.
        if len(self.objectives) == 1 and outcome.epoch not in self.reported[trial_id]:
            (metric,) = self.objectives
            self.reported[trial_id].add(outcome.epoch)
            self.running[trial_id].report(outcome.best[metric], outcome.epoch)

    def _record_end(self, trial_id: str, outcome: Outcome) -> None:
        trial = self.running[trial_id]
        if outcome.failure:
            trial.set_user_attr(REASON, outcome.failure)
            self.study.tell(trial, state=TrialState.FAIL)
            return
        self._report_epoch(trial_id, outcome)
        # Optuna has no pruned trials of several objectives: the study gets what was reached.
        if len(self.objectives) == 1 and not outcome.is_finished(self.training):
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, [outcome.best[metric] for metric in self.objectives])

    def save(self, checkpoint_path: str) -> None:
        # All of the state is in the study, but Tune expects a file.
        Path(checkpoint_path).touch()
