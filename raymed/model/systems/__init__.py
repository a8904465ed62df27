"""The systems of the paper's tables, a file each; a file's name is the system's."""

from importlib import import_module

from raymed.model.encoder import Encoder
from raymed.model.system import System
from raymed.sections import ModelConfig


def build_system(config: ModelConfig, tags: int, words: int, encoder: Encoder | None) -> System:
    """The system that ``config.system`` names; the arguments are those of `System`."""
    system: System = import_module(f"{__name__}.{config.system}").Model(
        config, tags, words, encoder
    )
    return system
