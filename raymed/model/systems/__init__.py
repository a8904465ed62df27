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


def build_system(config: ModelConfig, tags: int, words: int, encoder: Encoder | None) -> System:
    """The system that ``config.system`` names; the arguments are those of `System`."""
    system = system_class(config.system)(config, tags, words, encoder)
    if system.writer is not None:
        system.writer.embedding_dropout.rate = config.embedding_dropout
        system.writer.output_dropout.rate = config.decoder_dropout or 0.0
        if config.tie_embeddings:
            system.writer.tie_embeddings()
    return system
