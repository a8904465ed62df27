"""Fine-tuning a sweep's best trials: each goes on from its weights with the encoder unfrozen."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from raymed import config as configuration
from raymed.config import Config
from raymed.errors import UsageError
from raymed.evaluation import baseline_scores
from raymed.launch.parallel_runs import train_in_parallel
from raymed.launch.run import CONFIG_FILE, claim, last_checkpoint, located, require_worker_groups
from raymed.locks import folder_lock
from raymed.storage import AnyPath
from raymed.training.checkpoint import Checkpoint
from raymed.training.setup import check
from raymed.tuning.leaderboard import TrialResult, ranked_trials
from raymed.tuning.study import SWEEP_FILE, open_study
from raymed.tuning.trial import TRIALS

FINE_TUNED = "fine-tuned"
"""The folder of the fine-tuned runs, below the sweep's."""


@dataclass(frozen=True)
class FineTuned:
    """A trial before and after.

    Attributes:
        trial: as the leaderboard has it.
        folder: of the run that goes on from it.
        score: the run's best validation score.
    """

    trial: TrialResult
    folder: AnyPath
    score: float


def fine_tune(
    folder: AnyPath, trials: int, overrides: Sequence[str], console: Console
) -> list[FineTuned]:
    """Train the best trials of a sweep on, with their encoders unfrozen; or take that up.

    The runs lie in ``SWEEP/fine-tuned/``, one for each trial; the trials stay as they are.

    Args:
        folder: of a sweep.
        trials: how many, from the leaderboard's top.
        overrides: ``key=value`` texts, such as ``training.epochs=5``; what they leave out is the
            trial's own.
        console: to print on.

    Raises:
        UsageError: it is no sweep's folder, no trial has a score, or a setting does not fit.
    """
    if not (folder / SWEEP_FILE).is_file():
        raise UsageError(f"{folder}: is no sweep's folder: it has no {SWEEP_FILE}")
    sweep = located(configuration.load(folder / SWEEP_FILE))
    ranked = ranked_trials(open_study(sweep, folder), sweep, folder)
    best = [trial for trial in ranked if trial.best][:trials]
    if not best:
        raise UsageError(f"{folder}: no trial has a score yet, so there is none to fine-tune")
    configs = {
        (folder / FINE_TUNED / trial.trial).absolute(): _unfrozen(folder, trial, overrides)
        for trial in best
    }
    base = next(iter(configs.values()))
    require_worker_groups(base, "fine-tuning")
    with folder_lock(folder / FINE_TUNED):
        waiting = {}
        for run, config in configs.items():
            dataset = check(config)
            claim(config)
            last = last_checkpoint(run, dataset)
            if last is None or last.epoch < config.training.epochs:
                waiting[run] = config
        if waiting:
            train_in_parallel(waiting, base, folder / FINE_TUNED, None, _outcome, console)
    done = [
        FineTuned(trial, run, Checkpoint.open(run).history[-1]["score"])
        for trial, run in zip(best, configs, strict=True)
    ]
    console.print(_table(done))
    for name, baseline in baseline_scores(dataset, "val", base.data.validation_images).items():
        console.print(f"{name}: CIDEr {baseline.cider:.3f}, recall@5 {baseline.recall_5:.3f}")
    return done


def _unfrozen(folder: AnyPath, trial: TrialResult, overrides: Sequence[str]) -> Config:
    own = (folder / TRIALS / trial.trial).absolute()
    settings = [
        "model.train_encoder=true",
        f"training.start_from={own}",
        *overrides,
        f"run.folder={(folder / FINE_TUNED).absolute()}",
        f"run.name={trial.trial}",
    ]
    return located(configuration.load(own / CONFIG_FILE, settings))


def _outcome(run: AnyPath) -> str:
    best = Checkpoint.open(run).history[-1]
    return f"validation {'CIDEr' if 'cider' in best else 'recall@5'} {best['score']:.3f}"


def _table(done: Sequence[FineTuned]) -> Table:
    table = Table(title="validation score", box=None, padding=(0, 2, 0, 0))
    for head in ("trial", "frozen", "fine-tuned"):
        table.add_column(head, justify="left" if head == "trial" else "right", no_wrap=True)
    for one in sorted(done, key=lambda one: -one.score):
        table.add_row(one.trial.trial, f"{one.trial.score:.3f}", f"{one.score:.3f}")
    return table
