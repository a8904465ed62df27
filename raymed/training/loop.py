"""The training loop: plain torch, on one process or on many with DDP; no Ray.

Read `train` from top to bottom. Everything random depends on the seed, the epoch and an image's
place in it, so a run that is taken up again ends where an uninterrupted one ends.
"""

import math
import time
from contextlib import nullcontext
from dataclasses import fields
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raymed.config import Config
from raymed.data.batches import TokenisedSplit, steps_per_epoch
from raymed.data.dataset import PreparedDataset
from raymed.data.vocabulary import Vocabulary
from raymed.errors import UsageError
from raymed.model.system import System
from raymed.model.systems import build_system
from raymed.sections import TrainingConfig
from raymed.storage import Place
from raymed.training.checkpoint import (
    Checkpoint,
    Partial,
    best_epoch,
    checkpoints_of,
    latest,
)
from raymed.training.features import freeze
from raymed.training.log import RunLog
from raymed.training.loss import Terms, terms
from raymed.training.observer import Observer, Status
from raymed.training.saving import LeavingValidation, Saving, TrainingStopped
from raymed.training.start import build_starting_encoder, check_start, starting_checkpoint
from raymed.training.validation import sample_reports, validate
from raymed.training.worker import Worker, autocast

NAMES = ["loss", *(f"loss_{field.name}" for field in fields(Terms))]
"""The loss and its terms, as an epoch's row names them."""


def train(config: Config, folder: Place, worker: Worker, observer: Observer) -> None:
    """Train one run, from its last checkpoint if it has one.

    Args:
        config: of the run.
        folder: of the run; takes checkpoints, metrics.csv and TensorBoard's files.
        worker: rank, world size and device; with a world above 1, torch.distributed is ready.
        observer: told how far the run is, and asked whether it is to end.

    Raises:
        UsageError: the data set, the weights or a checkpoint cannot be used.
        TrainingStopped: a gradient is no longer finite, naming epoch, step and the terms of the
            loss; or the last checkpoint cannot be written.
        TrainingEnded: the observer wanted the run to end; it goes on from where it was.
    """
    dataset = check(config)
    vocabulary = Vocabulary.most_frequent(dataset.words, dataset.tags, config.data.vocabulary)
    limits = config.generation.max_sentences, config.generation.max_words
    splits = {name: dataset.split(name) for name in ("train", "val")}
    path = latest(folder)
    last = None if path is None else Checkpoint.open(path)
    history = [] if last is None else last.history
    validated_on = min(config.data.validation_images or len(splits["val"]), len(splits["val"]))
    steps = steps_per_epoch(len(splits["train"]), config.training.batch_size)
    log = RunLog(folder, history, config) if worker.rank == 0 else None

    with log or nullcontext():
        start = last or starting_checkpoint(config)
        encoder, frozen = None, None
        if config.model.train_encoder:
            encoder = build_starting_encoder(config, start)
        else:
            frozen = freeze(
                config,
                dataset,
                splits,
                start,
                worker,
                lambda done, images: observer.progress(
                    Status(0, done, images, workers=worker.world)
                ),
                ending=observer.ending,
            )
            # Whether the encoder was drawn just now or known is not to alter the rest.
            torch.manual_seed(config.training.seed)
        model = build_system(config.model, len(vocabulary.tags), len(vocabulary), encoder)
        model = model.to(worker.device)
        optimizer = build_optimizer(model, config.training)
        if last is not None:
            last.restore(model, optimizer)
        elif start is not None:
            start.put_into(model)
        parallel: nn.Module = model
        if worker.world > 1:
            # All are used; but only so does DDP keep its first buckets. Those that it would lay
            # after the first step sum gradients in another order, which a restart would show.
            parallel = DistributedDataParallel(model, find_unused_parameters=True)
        training, validation = (
            TokenisedSplit(
                splits[name], vocabulary, *limits, frozen.features[name] if frozen else None
            )
            for name in ("train", "val")
        )
        form = Checkpoint(
            config=config,
            vocabulary=vocabulary,
            image_size=dataset.info.image_size,
            content_hash=dataset.info.content_hash,
            history=history,
            curve=[],
            path=checkpoints_of(folder),
        )
        encoder_file = frozen.encoder_file if frozen else None
        went_on = last.partial if last else None

        with Saving(form, model, optimizer, encoder_file, log, observer) as saving:
            for epoch in range(len(history) + 1, config.training.epochs + 1):
                so_far = went_on or Partial(0, [0.0] * len(NAMES), 0.0)
                went_on = None
                sums = torch.tensor(so_far.sums, device=worker.device, dtype=torch.float64)
                began = time.perf_counter() - so_far.seconds
                model.train()
                batches = training.batches(
                    config.training.batch_size,
                    config.training.seed,
                    epoch,
                    worker.rank,
                    worker.world,
                    first=so_far.step,
                )
                for step, batch in enumerate(batches, start=so_far.step + 1):
                    set_rates(optimizer, config.training, (epoch - 1) * steps + step - 1, steps)
                    batch = batch.to(worker.device)
                    with autocast(config.training, worker.device):
                        outputs = parallel(batch.images, batch.reports, batch.seeds)
                        losses = terms(outputs, batch)
                    total = losses.total(config.loss)
                    # The weights of all shares sum to 1, and DDP takes the mean over the workers.
                    loss = (total * batch.weights).sum() * worker.world
                    optimizer.zero_grad()
                    loss.backward()
                    norm = nn.utils.clip_grad_norm_(model.parameters(), config.training.clip_norm)
                    if not math.isfinite(norm):
                        raise _diverged(epoch, step, losses)
                    optimizer.step()
                    status = Status(epoch, step, steps, float(loss.detach()), worker.world)
                    observer.progress(status)
                    summed, ending = _over_all(
                        _summed(losses, total, counted=batch.weights > 0), observer.ending(), worker
                    )
                    sums += summed
                    if step < steps and (ending or step % config.launch.checkpoint_steps == 0):
                        seconds = time.perf_counter() - began
                        saving.within(epoch, Partial(step, sums.tolist(), seconds), history)
                        if ending:
                            raise saving.ended(worker)
                trained = Partial(steps, sums.tolist(), time.perf_counter() - began)

                row = {"epoch": float(epoch)}
                row |= dict(zip(NAMES, (sums / len(training)).tolist(), strict=True))
                validated = validate(
                    model,
                    validation,
                    vocabulary,
                    config,
                    worker,
                    LeavingValidation(
                        saving,
                        partial(saving.within, epoch, trained, history),
                        observer.ending,
                        worker,
                        batches=-(-(validated_on // worker.world) // config.training.batch_size),
                    ),
                )
                row |= validated.row
                row["best_score"] = max(r["score"] for r in [*history, row])
                row["learning_rate"] = optimizer.param_groups[0]["lr"]
                row["images_per_second"] = len(training) / trained.seconds
                row["seconds"] = time.perf_counter() - began
                history = [*history, row]
                samples = []
                if log and best_epoch(history) == epoch:
                    samples = sample_reports(
                        model, validation, vocabulary, validated.config, worker
                    )
                saving.after(validated.config, history, validated.curve, samples)
                observer.epoch(row)
                if _over_all(sums, observer.ending(), worker)[1] and epoch < config.training.epochs:
                    raise saving.ended(worker)
            saving.whole(worker)


def check(config: Config) -> PreparedDataset:
    """Open the data set and see that the configuration fits it.

    Raises:
        UsageError: naming the key that does not fit.
    """
    dataset = PreparedDataset.open(config.data.path)
    check_start(config, dataset)
    tags = len(dataset.tags)
    if config.model.top_tags > tags:
        raise UsageError(
            f"model.top_tags: {config.model.top_tags} tags are to be attended to, and "
            f"{config.data.path} has {tags}: set it to {tags} at most"
        )
    smallest = 8 if config.model.encoder == "small" else 32
    if dataset.info.image_size < smallest:
        raise UsageError(
            f"model.encoder: {config.model.encoder} needs images of at least {smallest} pixels, "
            f"and those of {config.data.path} have {dataset.info.image_size}: prepare it again "
            "with a larger image_size, or take another encoder"
        )
    return dataset


def build_optimizer(model: System, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with a rate for the encoder and one for the rest; only matrices decay."""
    encoder = {id(p) for p in model.encoder.parameters()} if model.encoder else set()
    groups = []
    for in_encoder, rate in (
        (False, config.learning_rate),
        (True, config.encoder_learning_rate),
    ):
        for decays in (True, False):
            params = [
                p
                for p in model.parameters()
                if p.requires_grad and (id(p) in encoder) == in_encoder and (p.ndim > 1) == decays
            ]
            decay = config.weight_decay if decays else 0.0
            groups.append({"params": params, "base_rate": rate, "weight_decay": decay})
    return torch.optim.AdamW([group for group in groups if group["params"]], fused=True)


def set_rates(
    optimizer: torch.optim.Optimizer, config: TrainingConfig, done: int, steps: int
) -> None:
    """The learning rates after ``done`` steps of ``config.epochs`` times ``steps``.

    A linear rise over the first ``warmup`` of them, then a half cosine down to ``final_rate``.
    """
    share, floor = (done + 1) / (config.epochs * steps), config.final_rate
    if share < config.warmup:
        factor = share / config.warmup
    else:
        fallen = (share - config.warmup) / (1 - config.warmup) if config.warmup < 1 else 0.0
        factor = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * fallen))
    for group in optimizer.param_groups:
        group["lr"] = group["base_rate"] * factor


def _summed(losses: Terms, total: Tensor, counted: Tensor) -> Tensor:
    values = torch.stack([total, *(getattr(losses, f.name) for f in fields(losses))])
    return (values.detach() * counted).sum(dim=1)


def _over_all(sums: Tensor, ending: bool, worker: Worker) -> tuple[Tensor, bool]:
    """Sums over all workers, and whether any of them is to end; in one message."""
    if worker.world == 1:
        return sums, ending
    both = torch.cat([sums, sums.new_tensor([float(ending)])])
    dist.all_reduce(both)
    return both[:-1], bool(both[-1] > 0)


def _diverged(epoch: int, step: int, losses: Terms) -> TrainingStopped:
    means = {f.name: float(getattr(losses, f.name).detach().mean()) for f in fields(losses)}
    listed = ", ".join(f"{name} {value:.4g}" for name, value in means.items())
    return TrainingStopped(
        f"training diverged at epoch {epoch}, step {step}: a gradient is not finite (mean terms of "
        f"the loss: {listed}). Lower training.learning_rate or training.clip_norm, or the loss "
        "weights"
    )
