"""How a training run ends before its last epoch."""

from raymed.errors import UsageError


class TrainingFailed(UsageError):
    """Training cannot continue. Raised on all workers at once; earlier checkpoints stay valid."""


class Interrupted(Exception):
    """Training stopped early because it was asked to; the same command resumes what was saved."""
