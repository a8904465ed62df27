"""What a run maximises: the likelihood of the training reports, or the score of its own."""

from typing import ClassVar, NamedTuple, Protocol

from torch import Tensor, nn

from raymed.model.system import System
from raymed.training.loss import LossTerms, loss_terms
from raymed.training.prefetch import TrainingBatch


class StepLosses(NamedTuple):
    """The result of a training pass over B images.

    Attributes:
        terms: The terms of the loss, with their gradients.
        measured: A value [B] for each of the objective's `Objective.measures`.
    """

    terms: LossTerms
    measured: tuple[Tensor, ...] = ()


class Objective(Protocol):
    """Computes the terms of the loss; chosen when a run is set up."""

    measures: ClassVar[tuple[str, ...]]
    """What it measures besides: names of columns of metrics.csv, means over an epoch's images."""

    def __call__(self, training_batch: TrainingBatch) -> StepLosses:
        """A training pass over a worker's share of a batch."""


class Likelihood:
    """The joint loss of eqs. 8 and 9. Never waits for the device.

    Args:
        model: The system.
        parallel: The module to call: the model, or DDP around it.
        label_smoothing: As in `raymed.training.loss.word_loss`.
    """

    measures: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: System, parallel: nn.Module, label_smoothing: float = 0.0) -> None:
        self.model = model
        self.parallel = parallel
        self.label_smoothing = label_smoothing

    def __call__(self, training_batch: TrainingBatch) -> StepLosses:
        """A teacher-forced pass over the training reports."""
        batch, passages = training_batch
        with self.model.precision_context():
            outputs = self.parallel(batch.images, passages, batch.seeds)
            return StepLosses(loss_terms(outputs, batch, self.label_smoothing))
