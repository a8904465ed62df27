"""What a run needs before its first step: data, model, optimiser, and the checkpoint it resumes.

The first worker decides what all must agree on (the last checkpoint, the starting weights, the
precision, the dataset) and sends it to the others. Another node may see an older state of the same
folder, and two workers that begin with different weights would train on without an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from raymed.config import Config
from raymed.data.batches import TokenisedSplit
from raymed.data.dataset import PreparedDataset, Split
from raymed.data.studies import Examples, StudySplit, examples
from raymed.data.vocabulary import Vocabulary
from raymed.errors import UsageError
from raymed.model.encoder_shapes import smallest_image
from raymed.model.system import System
from raymed.model.systems import build_system, system_class
from raymed.storage import AnyPath
from raymed.training.augment import check_augmentation
from raymed.training.checkpoint import ENCODER_FILE, TRAINED_ON_FILE, Checkpoint, latest
from raymed.training.checkpoint_paths import checkpoints_of
from raymed.training.features import FrozenEncoder, freeze_encoder
from raymed.training.objective import Likelihood, Objective
from raymed.training.observer import Observer
from raymed.training.optimizer import broadcast_state, build_optimizer
from raymed.training.precision import computes_bfloat16, dtype_of, name_of, resolve_precision
from raymed.training.scales import set_scales
from raymed.training.self_critical import SelfCritical, check_objective
from raymed.training.start import build_starting_encoder, check_start, starting_checkpoint
from raymed.training.trained_on import trained_on_file
from raymed.training.worker import Worker


@dataclass(frozen=True)
class Setup:
    """A run that is ready for its next step.

    Attributes:
        config: The run's configuration, its precision decided.
        model: The system, with the weights to train on from, on the worker's device.
        parallel: The module to call in training: the model, or DDP around it.
        objective: Computes the terms of the loss.
        optimizer: The model's optimiser, with the state to train on from.
        training: The training split.
        validation: The validation split.
        template: A checkpoint of the run, to be filled in with what it learns. Its path is the
            folder of the run's checkpoints; its history has the epochs already done.
        resumed: The checkpoint the run resumes from, if any.
        shared_files: Files that all checkpoints of the run contain, by their names there.
    """

    config: Config
    model: System
    parallel: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    training: TokenisedSplit
    validation: TokenisedSplit
    template: Checkpoint
    resumed: Checkpoint | None
    shared_files: Mapping[str, Path]


def set_up(config: Config, folder: AnyPath, worker: Worker, observer: Observer) -> Setup:
    """Open the data, and build the model with the weights the run starts or resumes from.

    Raises:
        Interrupted: The run was asked to stop while its encoder's features were computed.
        UsageError: The dataset, the weights or a checkpoint cannot be used, or the workers do not
            see the same dataset.
    """
    dataset = check(config)
    _require_same_dataset(dataset, worker)
    resumed = worker.first(lambda: _last_checkpoint(folder))
    config = _decide_precision(config, resumed, worker, observer)
    start = resumed or worker.first(lambda: starting_checkpoint(config))
    vocabulary = Vocabulary.most_frequent(dataset.words, dataset.tags, config.data.vocabulary)
    splits = {name: dataset.split(name) for name in ("train", "val")}

    frozen = None
    if config.model.train_encoder != "all":
        frozen = _freeze_encoder(config, dataset, splits, start, worker, observer)
    model = _build_model(config, vocabulary, start, worker, observer)
    optimizer = build_optimizer(model, config.training)
    # The first worker reads, and DDP sends its weights to the others: one download per run.
    if worker.rank == 0 and resumed is not None:
        resumed.restore(model, optimizer)
    elif worker.rank == 0 and start is not None:
        start.load_into(model)
    limits = config.generation.max_sentences, config.generation.max_words
    training, validation = (
        TokenisedSplit(
            examples(split, config.data.images_per_study),
            vocabulary,
            *limits,
            frozen.features[name] if frozen else None,
        )
        for name, split in splits.items()
    )
    if start is None:
        set_scales(model, training, config.training.batch_size, worker, observer.ending)
    parallel = _parallel(model, optimizer, worker)

    if worker.rank == 0 and resumed is None:
        _warn_of_truncation(training, config, observer)
        _warn_of_studies(training.split, observer)
    template = Checkpoint(
        config=config,
        vocabulary=vocabulary,
        image_size=dataset.info.image_size,
        content_hash=dataset.info.content_hash,
        history=[] if resumed is None else resumed.history,
        curve=[],
        path=checkpoints_of(folder),
    )
    shared_files = _shared_files(config, dataset, frozen, worker)
    return Setup(
        config,
        model,
        parallel,
        _objective(config, model, parallel, training),
        optimizer,
        training,
        validation,
        template,
        resumed,
        shared_files,
    )


def check(config: Config) -> PreparedDataset:
    """Open the dataset and check that the configuration fits it.

    Raises:
        UsageError: It does not; the message names the key.
    """
    dataset = PreparedDataset.open(config.data.path)
    check_objective(config)
    check_augmentation(config)
    check_start(config, dataset)
    check_model(config, dataset)
    return dataset


def check_model(config: Config, dataset: PreparedDataset) -> None:
    """Check that a system can have the settings of `model`, and that these fit the dataset.

    Raises:
        UsageError: They do not; the message names the key.
    """
    system_class(config.model.system).check(config.model)
    tags = len(dataset.tags)
    if config.model.top_tags > tags:
        raise UsageError(
            f"model.top_tags: the model is to attend to {config.model.top_tags} tags, but "
            f"{config.data.path} has {tags}: set it to {tags} at most"
        )
    check_image_size(config, dataset.info.image_size)


def check_image_size(config: Config, size: int) -> None:
    """Check that the encoder takes such images, and has regions to choose from if attended to.

    Args:
        config: The run's configuration.
        size: Side of the images in pixels.

    Raises:
        UsageError: It does not; the message names the key.
    """
    name, smallest = config.model.encoder, smallest_image(config.model.encoder)
    if size < smallest:
        raise UsageError(
            f"model.encoder: {name} needs images of at least {smallest} pixels, but those of "
            f"{config.data.path} have {size}: prepare it again with a larger image_size, or "
            "choose another encoder"
        )
    smallest = smallest_image(name, 2)
    if system_class(config.model.system).visual and size < smallest:
        raise UsageError(
            f"model.encoder: {name} makes a single region of an image of {size} pixels, and "
            f"{config.model.system} attends to regions: prepare {config.data.path} again with "
            f"image_size={smallest} or more, or choose another encoder"
        )


def _last_checkpoint(folder: AnyPath) -> Checkpoint | None:
    path = latest(folder)
    return None if path is None else Checkpoint.open(path)


def _require_same_dataset(dataset: PreparedDataset, worker: Worker) -> None:
    ours = dataset.info.content_hash
    theirs = worker.first(lambda: ours)
    if ours != theirs:
        raise UsageError(
            f"{dataset.path}: worker {worker.rank} finds different content there "
            f"({ours[:12]}) from the first worker ({theirs[:12]}): make sure that all nodes have "
            "the same dataset and that none sees an old state of the folder"
        )


def _decide_precision(
    config: Config, resumed: Checkpoint | None, worker: Worker, observer: Observer
) -> Config:
    """The configuration with the precision the run was begun in, or now gets, on all workers."""
    if resumed is not None and config.training.precision == "auto":
        config = config.override({"training.precision": name_of(resumed.precision)})
    config = worker.first(lambda: resolve_precision(config, worker.device))
    if resumed is not None and dtype_of(config) != resumed.precision:
        raise UsageError(
            f"training.precision: is {config.training.precision}, but {resumed.path} was trained "
            f"in {name_of(resumed.precision)}: leave it at auto to continue in that, or choose "
            "another run.name"
        )
    if dtype_of(config) == torch.bfloat16 and not computes_bfloat16(worker.device):
        observer.warn(
            "training.precision: the run computes in bfloat16, which this machine's "
            f"{worker.device.type.upper()} only emulates; it will be slow"
        )
    return config


def _freeze_encoder(
    config: Config,
    dataset: PreparedDataset,
    splits: dict[str, Split],
    start: Checkpoint | None,
    worker: Worker,
    observer: Observer,
) -> FrozenEncoder:
    """What is frozen of the encoder, checked to be the same on all workers."""
    frozen = freeze_encoder(config, dataset, splits, start, worker, observer)
    ours = frozen.encoder_file.parent.name
    theirs = worker.first(lambda: ours)
    if ours != theirs:
        raise UsageError(
            f"model.encoder_weights: worker {worker.rank} finds different weights of the frozen "
            "encoder from the first worker: make sure that all nodes have the same file"
        )
    # Whether the encoder was initialised just now or found in the cache must not change the rest.
    torch.manual_seed(config.training.seed)
    return frozen


def _build_model(
    config: Config,
    vocabulary: Vocabulary,
    start: Checkpoint | None,
    worker: Worker,
    observer: Observer,
) -> System:
    """The system, without what is frozen of the encoder, on the worker's device."""
    trained = config.model.train_encoder
    encoder = None if trained == "none" else build_starting_encoder(config, start)
    if encoder is not None and trained == "hidden":
        encoder.drop_convolutions()
    if encoder is not None and trained == "all" and worker.rank == 0:
        for notice in encoder.notices:
            observer.warn(notice)
    sizes, images = (len(vocabulary.tags), len(vocabulary)), config.data.images_per_study
    model = build_system(config.model, *sizes, encoder, images)
    return model.move_to(worker.device, dtype_of(config))


def _parallel(model: System, optimizer: torch.optim.Optimizer, worker: Worker) -> nn.Module:
    """The module to call in training; all workers then have the first one's state."""
    if worker.world == 1:
        return model
    # Every parameter is used. But only with find_unused_parameters does DDP keep its first
    # buckets: those it would rebuild after the first step sum gradients in another order, so that
    # a resumed run would differ from an uninterrupted one.
    parallel = DistributedDataParallel(
        model,
        find_unused_parameters=True,
        gradient_as_bucket_view=True,
    )
    broadcast_state(optimizer, worker)
    return parallel


def _objective(
    config: Config, model: System, parallel: nn.Module, training: TokenisedSplit
) -> Objective:
    if config.training.objective == "cider":
        return SelfCritical(model, parallel, training, config.generation)
    return Likelihood(model, parallel, config.loss.label_smoothing)


def _warn_of_truncation(training: TokenisedSplit, config: Config, observer: Observer) -> None:
    if system_class(config.model.system).writes_reports and (share := training.cut_share()):
        limits = config.generation
        observer.warn(
            f"{max(share, 0.001):.1%} of the training reports' words lie beyond "
            f"generation.max_sentences={limits.max_sentences} or "
            f"generation.max_words={limits.max_words} and will be neither learned nor generated; "
            "raise these limits to include them"
        )


def _warn_of_studies(training: Examples, observer: Observer) -> None:
    """Warn of studies that have more images than are read, and where none has several."""
    if not isinstance(training, StudySplit):
        return
    studies, images = training.unread()
    key = f"data.images_per_study={training.most}"
    if studies:
        observer.warn(
            f"{key}: {studies:,} of {len(training):,} training studies have more images; their "
            f"first {training.most} are read, the other {images:,} images are not"
        )
    if not training.has_several():
        observer.warn(
            f"{key}: no training study has more than one image: set it to 1, or prepare the "
            "dataset again with all views"
        )


def _shared_files(
    config: Config, dataset: PreparedDataset, frozen: FrozenEncoder | None, worker: Worker
) -> dict[str, Path]:
    """The files that every checkpoint of the run contains, by their names there."""
    files = {}
    if trained_on := worker.first(lambda: trained_on_file(config, dataset)):
        files[TRAINED_ON_FILE] = trained_on
    if frozen:
        files[ENCODER_FILE] = frozen.encoder_file
    return files
