"""Fine-tuning a sweep's best trials: with the encoder unfrozen, or for their score."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from raymed.absolute_paths import with_absolute_paths
from raymed.config import Config
from raymed.errors import UsageError
from raymed.evaluation import baseline_scores
from raymed.launch.parallel_runs import require_worker_groups, train_in_parallel
from raymed.launch.second_stage import second_stage
from raymed.locks import folder_lock
from raymed.metrics.table import ranked_score, summary
from raymed.run_folder import FINE_TUNED, RunFolder, SweepFolder
from raymed.storage import AnyPath
from raymed.training.observer import is_finished
from raymed.training.setup import check
from raymed.tuning.leaderboard import TrialResult, ranked_trials
from raymed.tuning.study import open_study


@dataclass(frozen=True)
class FineTuned:
    """A trial before and after fine-tuning.

    Attributes:
        trial: The trial, from the leaderboard.
        folder: The run that continued from it.
        score: That run's best validation score.
    """

    trial: TrialResult
    folder: AnyPath
    score: float


def fine_tune(
    folder: AnyPath,
    trials: int,
    overrides: Sequence[str],
    console: Console,
    objective: str = "likelihood",
) -> list[FineTuned]:
    """Fine-tune the best trials of a sweep, or resume that.

    The runs lie in ``SWEEP/fine-tuned/``, one for each trial, called after it (and its objective,
    if that is cider); the trials stay as they are.

    Args:
        folder: A sweep's folder.
        trials: How many trials, from the top of the leaderboard.
        overrides: ``key=value`` texts, such as ``training.epochs=5``; the trial's own settings
            apply otherwise.
        console: Where to print.
        objective: ``likelihood``, with the encoder unfrozen; or ``cider``, as `second_stage`.

    Raises:
        UsageError: It is not a sweep's folder, no trial has a score, or a setting does not fit.
    """
    sweep = SweepFolder(folder)
    best = _best_trials(sweep, trials)
    configs = {
        RunFolder.of(config): config
        for config in (_config(sweep, one, overrides, objective) for one in best)
    }
    base = next(iter(configs.values()))
    require_worker_groups(base, "fine-tuning")
    with folder_lock(sweep.fine_tuned):
        unfinished = {}
        for run, config in configs.items():
            dataset = check(config)
            run.initialise(config)
            last = run.resumed_from(dataset)
            if last is None or not is_finished(last.history, config.training):
                unfinished[run] = config
        if unfinished:
            name = f"{sweep.path.absolute().name}-{FINE_TUNED}"
            train_in_parallel(
                unfinished, base, sweep.fine_tuned, None, _outcome, console, name=name
            )
    done = [
        FineTuned(trial, run.path, run.best_checkpoint().history[-1]["score"])
        for trial, run in zip(best, configs, strict=True)
    ]
    console.print(_table(done))
    limits = base.data.validation_images, base.data.images_per_study
    for name, baseline in baseline_scores(dataset, "val", *limits).items():
        console.print(f"{name}: {summary(baseline)}")
    return done


def _best_trials(sweep: SweepFolder, count: int) -> list[TrialResult]:
    config = with_absolute_paths(sweep.config())
    ranked = ranked_trials(open_study(config, sweep.path), config, sweep.path)
    best = [trial for trial in ranked if trial.best][:count]
    if not best:
        raise UsageError(f"{sweep.path}: no trial has a score yet, so there is none to fine-tune")
    return best


def _config(
    sweep: SweepFolder, trial: TrialResult, overrides: Sequence[str], objective: str
) -> Config:
    """The configuration of a trial's fine-tuning run."""
    own = RunFolder(sweep.trial(trial.trial).path.absolute())
    cider = objective == "cider"
    place = [
        f"run.folder={sweep.fine_tuned.absolute()}",
        f"run.name={trial.trial}{'-cider' if cider else ''}",
    ]
    if cider:
        return second_stage(own, [*overrides, *place])
    settings = ["model.train_encoder=all", f"training.start_from={own.path}", *overrides, *place]
    return with_absolute_paths(own.config(settings))


def _outcome(run: RunFolder) -> str:
    return f"validation {ranked_score(run.best_checkpoint().history[-1])}"


def _table(done: Sequence[FineTuned]) -> Table:
    table = Table(title="validation score", box=None, padding=(0, 2, 0, 0))
    for head in ("trial", "before", "fine-tuned"):
        table.add_column(head, justify="left" if head == "trial" else "right", no_wrap=True)
    for one in sorted(done, key=lambda one: -one.score):
        table.add_row(one.trial.trial, f"{one.trial.score:.3f}", f"{one.score:.3f}")
    return table
