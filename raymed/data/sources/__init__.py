"""The sources by name. A new one is a file that defines a `Source`, and a line in `SOURCES`.

The command line reads the names, so a source is imported only when it is used.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module
from typing import TYPE_CHECKING

from raymed.config import load_prepare
from raymed.errors import UsageError
from raymed.sections import PrepareConfig
from raymed.setting_values import GivenSettings

if TYPE_CHECKING:
    from raymed.data.sources.source import Source

SOURCES = {
    "iu-xray": "raymed.data.sources.iu_xray",
    "mimic-cxr": "raymed.data.sources.mimic_cxr",
    "peir-gross": "raymed.data.sources.peir_gross",
    "r2gen": "raymed.data.sources.r2gen",
    "table": "raymed.data.sources.table",
    "phantom": "raymed.data.sources.phantom",
}
"""What the user types -> the module that defines the source, `SOURCE`."""


def load_source(name: str) -> Source:
    """The source called ``name``."""
    source: Source = import_module(SOURCES[name]).SOURCE
    return source


def all_sources() -> dict[str, Source]:
    """All sources, by name."""
    return {name: load_source(name) for name in SOURCES}


def sources_accepting(setting: str) -> list[str]:
    """The names of the sources that a setting applies to."""
    return [name for name, source in all_sources().items() if source.accepts_setting(setting)]


def load_settings(source: str, overrides: GivenSettings) -> PrepareConfig:
    """Parse the settings of `raymed prepare` for a source, ``key=value`` texts or a mapping.

    Raises:
        UsageError: A key does not exist or belongs to another source, or a value is not valid.
    """
    keys = [text.partition("=")[0] for text in overrides]
    check_settings(source, {key.partition(".")[0] for key in keys})
    return load_prepare(overrides, load_source(source).settings)


def check_settings(source: str, names: Collection[str]) -> None:
    """Raise UsageError if a setting belongs only to other sources."""
    for name in sorted(names):
        accepting = sources_accepting(name)
        if accepting and source not in accepting:
            raise UsageError(
                f"{name}: is a setting of {', '.join(accepting)}; {source} would ignore it. "
                "Leave it out"
            )
