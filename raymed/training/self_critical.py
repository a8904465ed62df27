"""Self-critical sequence training: a second stage that maximises the CIDEr of a model's reports.

Rennie, Marcheret, Mroueh, Ross and Goel (2017), "Self-critical Sequence Training for Image
Captioning". For each image one report w is sampled and one, w', is written greedily; with the
reward r, CIDEr-D against the image's own report, the loss of an image is

    -(r(w) - r(w')) log p(w)

whose gradient is the expected reward's (REINFORCE, with the greedy report as the baseline). As in
the paper, log p(w) is the sum over all decisions of a report, not their mean, which would favour
long reports; the loss of a batch is the mean over its images, as everywhere. The decisions are the
words and, where the system plans sentences, after each sentence whether to stop. No decision is
made after the last sentence or word that the limits allow.

The tag loss stays, and so does the attention regularisation, over the sampled report's sentences:
neither depends on the reward. There is no dropout in this stage: the reports are sampled from the
distribution whose log-probability is differentiated and whose greedy reports are scored.
"""

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from raymed.config import Config
from raymed.data.batches import IGNORED, TokenisedSplit
from raymed.data.vocabulary import Vocabulary
from raymed.errors import UsageError
from raymed.generation import split_sentences
from raymed.metrics.cider import CiderReward
from raymed.metrics.ngrams import distinct
from raymed.model.system import Outputs, System
from raymed.model.systems import SYSTEMS, system_class
from raymed.sections import GenerationConfig
from raymed.tokens import PAD, START
from raymed.training.loss import LossTerms, loss_terms
from raymed.training.objective import StepLosses
from raymed.training.prefetch import TrainingBatch
from raymed.training.sampling import GREEDY, SAMPLED, forbid, roll_out


def check_objective(config: Config) -> None:
    """Check that the objective fits the rest of the configuration.

    Raises:
        UsageError: It does not; the message names the key.
    """
    if config.training.objective != "cider":
        return
    system = config.model.system
    if not system_class(system).writes_reports:
        writers = ", ".join(name for name in SYSTEMS if system_class(name).writes_reports)
        raise UsageError(
            f"training.objective: cider scores reports, but model.system={system} writes none: "
            f"use one that does ({writers}), or training.objective=likelihood"
        )
    if config.training.start_from is None:
        raise UsageError(
            "training.objective: cider continues a trained run, because the reports of an "
            "untrained model score 0: set training.start_from to the run's folder, or use "
            "`raymed finetune RUN objective=cider`"
        )
    if config.loss.label_smoothing > 0:
        raise UsageError(
            f"loss.label_smoothing: {config.loss.label_smoothing:g} smooths the words of training "
            "reports, but training.objective=cider trains on sampled reports, weighted by their "
            "score: set it to 0"
        )


class SelfCritical:
    """The self-critical objective. Its one wait for the device is for the reports to be scored.

    Args:
        model: The system.
        parallel: The module to call: the model, or DDP around it.
        training: The training split, whose reports are the references and give the document
            frequencies.
        settings: The limits of reports, and the stop threshold of greedy ones.

    Raises:
        UsageError: All reports of the training split are the same.
    """

    measures: ClassVar[tuple[str, ...]] = ("reward", "reward_greedy")

    def __init__(
        self,
        model: System,
        parallel: nn.Module,
        training: TokenisedSplit,
        settings: GenerationConfig,
    ) -> None:
        references = training.split.references
        if distinct(references) < 2:
            raise UsageError(
                "training.objective: cider cannot be above 0 where all training reports are the "
                "same; use training.objective=likelihood"
            )
        self.model = model
        self.parallel = parallel
        self.training = training
        self.settings = settings
        self.reward = CiderReward(references)

    def __call__(self, training_batch: TrainingBatch) -> StepLosses:
        """Sample and score reports, then compute the gradient in a pass over the sampled ones."""
        batch, _ = training_batch
        device = batch.weights.device
        words = roll_out(self.model, batch.images, batch.seeds, self.settings).cpu()
        rewards = self._rewards(words, batch.rows).to(device, non_blocking=True)
        reports, stops = as_reports(words[SAMPLED])
        passages = self.model.passages(reports)
        if device.type == "cuda":
            passages, stops = passages.pin_memory(), stops.pin_memory()
        passages, stops = passages.to(device), stops.to(device, non_blocking=True)
        with self.model.precision_context():
            outputs = self.parallel(batch.images, passages, None)
            losses = loss_terms(self._of_choices(outputs), replace(batch, stops=stops))
        terms = self_critical_terms(losses, rewards)
        return StepLosses(terms, (rewards[SAMPLED], rewards[GREEDY]))

    def _rewards(self, words: Tensor, rows: Tensor) -> Tensor:
        """The rewards [2, B] of reports [2, B, P, T], in memory a GPU can copy from meanwhile."""
        references = [self.training.split.references[row] for row in rows.tolist()]
        vocabulary, limit = self.training.vocabulary, self.settings.max_sentences
        texts = [report_text(ids, vocabulary, limit) for ids in words.flatten(0, 1).tolist()]
        rewards = torch.from_numpy(self.reward(references * 2, texts))
        rewards = rewards.to(torch.get_default_dtype()).view(2, -1)
        return rewards.pin_memory() if self.model.device.type == "cuda" else rewards

    def _of_choices(self, outputs: Outputs) -> Outputs:
        """The outputs, with probabilities over the words that were there to be sampled."""
        assert outputs.words is not None
        assert self.model.writer is not None
        logits = forbid(self.model.writer, outputs.words.logits)
        return replace(outputs, words=outputs.words._replace(logits=logits))


def self_critical_terms(losses: LossTerms, rewards: Tensor) -> LossTerms:
    """The self-critical terms of the loss.

    Args:
        losses: The terms for the sampled reports: ``word`` and ``sent`` are -log p of the words
            and of the stop decisions.
        rewards: [2, B], of the sampled and the greedy reports.
    """
    advantage = rewards[SAMPLED] - rewards[GREEDY]
    return replace(losses, sent=advantage * losses.sent, word=advantage * losses.word)


def as_reports(words: Tensor) -> tuple[Tensor, Tensor]:
    """The reports and stops of a `Batch`, of sampled words [B, P, T] on the host.

    A report of P passages has no stop: that it has no more was not decided.
    """
    used = words != PAD
    words = words[:, : int(used.any(dim=2).sum(dim=1).max()), : int(used.sum(dim=2).max())]
    most = used.shape[1]
    has = words[:, :, :1] != PAD
    reports = torch.cat([torch.where(has, START, PAD), words], dim=2)
    counts = has.sum(dim=1)
    numbers = torch.arange(words.shape[1]).expand(len(words), -1)
    stops = (numbers == counts - 1).long()
    undecided = (numbers >= counts) | (numbers == most - 1)
    return reports, stops.masked_fill(undecided, IGNORED)


def report_text(passages: list[list[int]], vocabulary: Vocabulary, max_sentences: int) -> str:
    """The text of a report's passages [P, T], as generation would write and score it."""
    sentences = [ids for passage in passages for ids in split_sentences(passage)]
    return " ".join(filter(None, map(vocabulary.decode, sentences[:max_sentences])))
