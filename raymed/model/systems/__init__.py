"""The systems by name. A new one is a file with a class `Model`, and a line in `SYSTEMS`.

The configuration reads the names, so nothing is imported here that needs torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raymed.model.encoder import Encoder
    from raymed.model.system import System
    from raymed.sections import ModelConfig

SYSTEMS = {
    "att_rk": "raymed.model.systems.att_rk",
    "cnn_rnn": "raymed.model.systems.cnn_rnn",
    "co_attention": "raymed.model.systems.co_attention",
    "lrcn": "raymed.model.systems.lrcn",
    "no_attention": "raymed.model.systems.no_attention",
    "semantic_only": "raymed.model.systems.semantic_only",
    "soft_att": "raymed.model.systems.soft_att",
    "transformer": "raymed.model.systems.transformer",
    "vgg19_tags": "raymed.model.systems.vgg19_tags",
    "visual_only": "raymed.model.systems.visual_only",
}
"""The value of ``model.system`` -> the module that defines the system's class, `Model`."""


def system_class(name: str) -> type[System]:
    """The class of the system called ``name`` in the configuration."""
    model: type[System] = import_module(SYSTEMS[name]).Model
    return model


def build_system(
    config: ModelConfig,
    tags: int,
    words: int,
    encoder: Encoder | None,
    images_per_study: int = 1,
) -> System:
    """The system that ``config.system`` names; the other arguments are those of `System`.

    Args:
        config: The model section of the configuration.
        tags: L.
        words: V.
        encoder: The encoder, or None.
        images_per_study: The most images that are read of a study; 1: the examples are images.
    """
    from raymed.model.side_by_side import SideBySide

    system = system_class(config.system)(config, tags, words, encoder)
    if images_per_study > 1:
        width = system.visual_width if system.visual else None
        system.side_by_side = SideBySide(images_per_study, width)
    if system.writer is not None:
        system.writer.embedding_dropout.rate = config.embedding_dropout
        system.writer.output_dropout.rate = config.decoder_dropout or 0.0
        if config.tie_embeddings:
            system.writer.tie_embeddings()
    return system
