"""What a run is made of before its first step: data, model, optimiser, and where it goes on.

What the workers must agree on, the first decides and tells the others: the last checkpoint, what
the run starts from, its precision, the dataset. Another node may see an older state of the same
folder, and two workers that begin from different weights train on without an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from raymed.config import Config
from raymed.data.batches import TokenisedSplit
from raymed.data.dataset import PreparedDataset, Split
from raymed.data.vocabulary import Vocabulary
from raymed.errors import UsageError
from raymed.model.system import System
from raymed.model.systems import build_system
from raymed.sections import TAGS_ONLY, TrainingConfig
from raymed.storage import AnyPath
from raymed.training.checkpoint import (
    ENCODER_FILE,
    TRAINED_ON_FILE,
    Checkpoint,
    checkpoints_of,
    latest,
)
from raymed.training.features import Frozen, freeze
from raymed.training.observer import FEATURES, Observer, Status
from raymed.training.start import build_starting_encoder, check_start, starting_checkpoint
from raymed.training.trained_on import trained_on_file
from raymed.training.worker import Worker, computes_bfloat16, dtype_of, with_precision


@dataclass(frozen=True)
class Setup:
    """A run that is ready for its next step.

    Attributes:
        config: the run's, its precision decided.
        vocabulary: words and tags.
        model: with the weights to go on from, on the worker's device.
        parallel: the model, or what averages its gradients over the workers.
        optimizer: of the model, with the state to go on from.
        training, validation: the two splits.
        template: a checkpoint of the run, to be filled in with what it has learned.
        last: the checkpoint that the run goes on from, if any.
        constant: files that all of its checkpoints have, by their names there.
    """

    config: Config
    vocabulary: Vocabulary
    model: System
    parallel: nn.Module
    optimizer: torch.optim.Optimizer
    training: TokenisedSplit
    validation: TokenisedSplit
    template: Checkpoint
    last: Checkpoint | None
    constant: Mapping[str, Path]


def set_up(config: Config, folder: AnyPath, worker: Worker, observer: Observer) -> Setup:
    """Open the data, and build the model with the weights that the run goes on or starts from.

    Raises:
        UsageError: the dataset, the weights or a checkpoint cannot be used, or the workers do not
            see the same dataset.
    """
    dataset = check(config)
    _see_the_same(dataset, worker)
    last = worker.first(lambda: _last(folder))
    config = _with_run_precision(config, last, worker, observer)
    start = last or worker.first(lambda: starting_checkpoint(config))
    vocabulary = Vocabulary.most_frequent(dataset.words, dataset.tags, config.data.vocabulary)
    splits = {name: dataset.split(name) for name in ("train", "val")}

    encoder, frozen = None, None
    if config.model.train_encoder:
        encoder = build_starting_encoder(config, start)
    else:
        frozen = _freeze(config, dataset, splits, start, worker, observer)
    model = build_system(config.model, len(vocabulary.tags), len(vocabulary), encoder)
    model.place(worker.device, dtype_of(config))
    optimizer = build_optimizer(model, config.training)
    # The first worker reads, and DDP gives the others its weights; an object store is asked once.
    if worker.rank == 0 and last is not None:
        last.restore(model, optimizer)
    elif worker.rank == 0 and start is not None:
        start.put_into(model)
    parallel: nn.Module = model
    if worker.world > 1:
        # All parameters are used; but only so does DDP keep its first buckets. Those that it would
        # lay after the first step sum gradients in another order, which a restart would show.
        parallel = DistributedDataParallel(
            model,
            find_unused_parameters=True,
            gradient_as_bucket_view=True,
        )
        _give_state(optimizer, worker)
    limits = config.generation.max_sentences, config.generation.max_words
    training, validation = (
        TokenisedSplit(splits[name], vocabulary, *limits, frozen.features[name] if frozen else None)
        for name in ("train", "val")
    )
    if worker.rank == 0 and last is None:
        _warn_of_cut(training, config, observer)
    images = worker.first(lambda: trained_on_file(config, dataset))
    constant = {TRAINED_ON_FILE: images} if images else {}
    if frozen:
        constant[ENCODER_FILE] = frozen.encoder_file
    template = Checkpoint(
        config=config,
        vocabulary=vocabulary,
        image_size=dataset.info.image_size,
        content_hash=dataset.info.content_hash,
        history=[] if last is None else last.history,
        curve=[],
        path=checkpoints_of(folder),
    )
    return Setup(
        config,
        vocabulary,
        model,
        parallel,
        optimizer,
        training,
        validation,
        template,
        last,
        constant,
    )


def check(config: Config) -> PreparedDataset:
    """Open the dataset and see that the configuration fits it.

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


def _last(folder: AnyPath) -> Checkpoint | None:
    path = latest(folder)
    return None if path is None else Checkpoint.open(path)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _see_the_same(dataset: PreparedDataset, worker: Worker) -> None:
    ours = dataset.info.content_hash
    theirs = worker.first(lambda: ours)
    if ours != theirs:
        raise UsageError(
            f"{dataset.path}: worker {worker.rank} finds another content there "
            f"({ours[:12]}) than the first worker ({theirs[:12]}): see that all nodes have the "
            "same dataset, and that none sees an old state of the folder"
        )


def _with_run_precision(
    config: Config, last: Checkpoint | None, worker: Worker, observer: Observer
) -> Config:
    """The configuration with the precision that the run has, or now gets, on all workers."""
    if last is not None and config.training.precision == "auto":
        config = config.override({"training.precision": _name(last.precision)})
    config = worker.first(lambda: with_precision(config, worker.device))
    if last is not None and dtype_of(config) != last.precision:
        raise UsageError(
            f"training.precision: is {config.training.precision}, and {last.path} was trained in "
            f"{_name(last.precision)}: leave it at auto to go on with that, or choose another "
            "run.name"
        )
    if dtype_of(config) == torch.bfloat16 and not computes_bfloat16(worker.device):
        observer.warn(
            "training.precision: the run computes in bfloat16, which this machine's "
            f"{worker.device.type.upper()} only emulates: it goes on, but slowly"
        )
    return config


def _warn_of_cut(training: TokenisedSplit, config: Config, observer: Observer) -> None:
    if config.model.system not in TAGS_ONLY and (share := training.cut_share()):
        limits = config.generation
        observer.warn(
            f"{max(share, 0.001):.1%} of the training reports' words lie beyond "
            f"generation.max_sentences={limits.max_sentences} or "
            f"generation.max_words={limits.max_words}, and are neither learned nor written: raise "
            "these to have them"
        )


def _freeze(
    config: Config,
    dataset: PreparedDataset,
    splits: dict[str, Split],
    start: Checkpoint | None,
    worker: Worker,
    observer: Observer,
) -> Frozen:
    def progress(done: int, images: int) -> None:
        observer.progress(Status(0, done, images, workers=worker.world, doing=FEATURES))

    frozen = freeze(config, dataset, splits, start, worker, progress, ending=observer.ending)
    ours = frozen.encoder_file.parent.name
    theirs = worker.first(lambda: ours)
    if ours != theirs:
        raise UsageError(
            f"model.encoder_weights: worker {worker.rank} finds other weights of the frozen "
            "encoder than the first worker: see that all nodes have the same file"
        )
    # Whether the encoder was drawn just now or known is not to alter the rest.
    torch.manual_seed(config.training.seed)
    return frozen


def _give_state(optimizer: torch.optim.Optimizer, worker: Worker) -> None:
    """Give all workers the first one's optimiser's state, as DDP gives them its weights."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    forms = worker.first(
        lambda: [
            {name: (value.shape, value.dtype) for name, value in optimizer.state[p].items()}
            for p in parameters
        ]
    )
    for parameter, form in zip(parameters, forms, strict=True):
        for name, (shape, dtype) in form.items():
            own = optimizer.state[parameter].get(name)
            sent = torch.empty(shape, dtype=dtype, device=parameter.device)
            if worker.rank == 0:
                sent.copy_(own)
            dist.broadcast(sent, 0)
            if worker.rank != 0:
                like = parameter if parameter.shape == shape else sent
                optimizer.state[parameter][name] = torch.empty_like(like, dtype=dtype).copy_(sent)
