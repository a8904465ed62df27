"""The weights a run starts from: those the configuration names, or another run's."""

import torch

from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.data.vocabulary import Vocabulary
from raymed.errors import UsageError
from raymed.model.encoder import Encoder, build_encoder
from raymed.model.encoder_weights import check_weights
from raymed.sections import ModelConfig
from raymed.storage import as_path
from raymed.training.checkpoint import Checkpoint

SHAPE_KEYS = ("system", "encoder", "hidden_size", "embedding_size", "tie_embeddings")
"""Keys of the model section that determine which weights there are and their shapes."""


def check_start(config: Config, dataset: PreparedDataset) -> None:
    """Check that the weights to start from exist and fit, before starting processes to load them.

    Raises:
        UsageError: They do not; the message names the key.
    """
    if config.training.start_from is None:
        if encoder_run(config.model) is None:
            check_weights(config.model.encoder, config.model.encoder_weights)
        return
    start, path = starting_checkpoint(config), config.training.start_from
    assert start is not None
    for name in SHAPE_KEYS:
        ours, theirs = (getattr(each.model, name) for each in (config, start.config))
        if ours != theirs:
            raise UsageError(
                f"model.{name}: is {ours}, but training.start_from: {path} has {theirs}: "
                f"set model.{name}={theirs}, or start from another run"
            )
    ours, theirs = (each.data.images_per_study for each in (config, start.config))
    if ours != theirs:
        raise UsageError(
            f"data.images_per_study: is {ours}, but training.start_from: {path} has {theirs}: set "
            f"data.images_per_study={theirs}, or start from another run"
        )
    vocabulary = Vocabulary.most_frequent(dataset.words, dataset.tags, config.data.vocabulary)
    for kind in ("words", "tags"):
        ours, theirs = (getattr(each, kind) for each in (vocabulary, start.vocabulary))
        if ours != theirs:
            raise UsageError(
                f"training.start_from: {path}: its {len(theirs)} {kind} differ from the "
                f"{len(ours)} of {config.data.path}: use the dataset and the data.vocabulary "
                "it was trained with, or start from another run"
            )


def starting_checkpoint(config: Config) -> Checkpoint | None:
    """The checkpoint that ``training.start_from`` names, if any.

    Raises:
        UsageError: It cannot be opened.
    """
    path = config.training.start_from
    return None if path is None else _open(path, "training.start_from")


def encoder_run(config: ModelConfig) -> Checkpoint | None:
    """The checkpoint that ``model.encoder_weights`` names, if it names a folder.

    Raises:
        UsageError: It cannot be opened, or has another encoder.
    """
    weights = config.encoder_weights
    if weights in ("imagenet", "none") or not as_path(weights).is_dir():
        return None
    checkpoint = _open(weights, "model.encoder_weights")
    theirs = checkpoint.config.model.encoder
    if theirs != config.encoder:
        raise UsageError(
            f"model.encoder_weights: {weights}: its encoder is {theirs}, but model.encoder is "
            f"{config.encoder}: set model.encoder={theirs}, or choose another run"
        )
    return checkpoint


def build_starting_encoder(config: Config, start: Checkpoint | None) -> Encoder:
    """The encoder of a checkpoint, or the one that the configuration describes.

    Random weights are drawn from the run's seed. Frozen hidden layers have no dropout between them.

    Raises:
        UsageError: The weights cannot be downloaded or read, or belong to another network.
    """
    model = config.model
    dropout = 0.0 if model.train_encoder == "none" else model.dropout
    source = start or encoder_run(model)
    torch.manual_seed(config.training.seed)
    if source is not None:
        return source.encoder(dropout)
    encoder = build_encoder(model.encoder, model.encoder_weights, dropout)
    if model.train_encoder == "none" and model.encoder_weights != "none" and encoder.hidden_is_new:
        encoder.notices.append(
            f"model.train_encoder=none: {model.encoder} has no trained hidden layer with these "
            "weights, so its overall feature is a random projection; set "
            "model.train_encoder=hidden to train one at little more cost"
        )
    return encoder


def _open(path: str, key: str) -> Checkpoint:
    try:
        return Checkpoint.open(path)
    except UsageError as error:
        raise UsageError(f"{key}: {error}") from None
