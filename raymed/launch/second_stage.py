"""A second stage of training, in which a run's own reports are trained for their CIDEr."""

from collections.abc import Sequence

from raymed.absolute_paths import with_absolute_paths
from raymed.config import Config
from raymed.errors import UsageError
from raymed.run_folder import CONFIG_FILE, RunFolder

SETTINGS = (
    "training.objective=cider",
    # A tenth of the first stage's default, and as the paper does, far fewer epochs.
    "training.learning_rate=5e-5",
    "training.encoder_learning_rate=1e-6",
    "training.epochs=5",
    # Words and stops are one report's decisions: only with equal weights is the gradient that of
    # the expected reward.
    "loss.word=1",
    "loss.sent=1",
    "loss.label_smoothing=0",
)
"""The settings of a second stage, where none are given."""


def second_stage(run: RunFolder, overrides: Sequence[str]) -> Config:
    """The configuration of a run's second stage, in a folder beside it called RUN-cider.

    It has the settings of the first stage, with the stop threshold and M that were best on the
    validation split if these were free, then `SETTINGS`, then the overrides.

    Args:
        run: The run to continue from; it is not changed.
        overrides: ``key=value`` texts.

    Raises:
        UsageError: It is not a run's folder, has no checkpoint yet, or a setting is not valid.
    """
    if not run.exists:
        raise UsageError(
            f"{run.path}: is not a run folder: it has no {CONFIG_FILE}; give a folder that "
            "`raymed train` made"
        )
    path = run.path.absolute()
    found = run.best_checkpoint().config
    settings = [
        f"run.folder={path.parent}",
        f"run.name={path.name}-cider",
        f"training.start_from={path}",
        f"generation.stop_threshold={found.generation.stop_threshold}",
        f"model.top_tags={found.model.top_tags}",
        *SETTINGS,
        *overrides,
    ]
    return with_absolute_paths(run.config(settings))


def describe(config: Config) -> str:
    """The values of the keys in `SETTINGS`, for people."""
    tree = config.model_dump()
    keys = (text.partition("=")[0].split(".") for text in SETTINGS)
    return ", ".join(f"{section}.{name}={tree[section][name]}" for section, name in keys)
