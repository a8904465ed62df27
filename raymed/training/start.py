"""What a run starts from: weights as the configuration names them, or those of another run."""

import torch

from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.data.vocabulary import Vocabulary
from raymed.errors import UsageError
from raymed.model.encoder import Encoder, build_encoder, check_weights
from raymed.sections import ModelConfig
from raymed.storage import as_path
from raymed.training.checkpoint import Checkpoint

SIZES = ("system", "encoder", "hidden_size", "embedding_size")
"""Keys of the model section that decide which weights there are and their shapes."""


def check_start(config: Config, dataset: PreparedDataset) -> None:
    """See that there are such weights to start from, before any process is started to load them.

    Raises:
        UsageError: naming the key that does not fit.
    """
    if config.training.start_from is None:
        if encoder_run(config.model) is None:
            check_weights(config.model.encoder, config.model.encoder_weights)
        return
    start, path = starting_checkpoint(config), config.training.start_from
    assert start is not None
    for name in SIZES:
        ours, theirs = (getattr(each.model, name) for each in (config, start.config))
        if ours != theirs:
            raise UsageError(
                f"model.{name}: is {ours}, and training.start_from: {path} has {theirs}: "
                f"set model.{name}={theirs}, or start from another run"
            )
    vocabulary = Vocabulary.most_frequent(dataset.words, dataset.tags, config.data.vocabulary)
    for kind in ("words", "tags"):
        ours, theirs = (getattr(each, kind) for each in (vocabulary, start.vocabulary))
        if ours != theirs:
            raise UsageError(
                f"training.start_from: {path}: its {len(theirs)} {kind} are not the {len(ours)} "
                f"of {config.data.path}: give the dataset and the data.vocabulary that it was "
                "trained with, or start from another run"
            )


def starting_checkpoint(config: Config) -> Checkpoint | None:
    """The checkpoint that `training.start_from` names, if it does.

    Raises:
        UsageError: it cannot be opened.
    """
    path = config.training.start_from
    return None if path is None else _open(path, "training.start_from")


def encoder_run(config: ModelConfig) -> Checkpoint | None:
    """The checkpoint that `model.encoder_weights` names, if it names a folder.

    Raises:
        UsageError: it cannot be opened, or has another encoder.
    """
    weights = config.encoder_weights
    if weights in ("imagenet", "none") or not as_path(weights).is_dir():
        return None
    checkpoint = _open(weights, "model.encoder_weights")
    theirs = checkpoint.config.model.encoder
    if theirs != config.encoder:
        raise UsageError(
            f"model.encoder_weights: {weights}: its encoder is {theirs}, and model.encoder is "
            f"{config.encoder}: set model.encoder={theirs}, or give another run"
        )
    return checkpoint


def build_starting_encoder(config: Config, start: Checkpoint | None) -> Encoder:
    """The encoder of a checkpoint, or the one that the configuration describes.

    Random weights are drawn from the run's seed. A frozen encoder has no dropout.

    Raises:
        UsageError: the weights cannot be downloaded, read, or are another network's.
    """
    model = config.model
    dropout = model.dropout if model.train_encoder else 0.0
    source = start or encoder_run(model)
    torch.manual_seed(config.training.seed)
    if source is not None:
        return source.encoder(dropout)
    return build_encoder(model.encoder, model.encoder_weights, dropout)


def _open(path: str, key: str) -> Checkpoint:
    try:
        return Checkpoint.open(path)
    except UsageError as error:
        raise UsageError(f"{key}: {error}") from None
