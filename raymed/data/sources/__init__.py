"""The registry of sources. A new source is one file in this package and one line in `SOURCES`.

Its file defines a `Source`. Once registered, it is a choice of ``raymed prepare``, and the help
text and the error messages list it with its settings.
"""

from collections.abc import Collection, Sequence

from raymed.config import load_prepare
from raymed.data.sources import iu_xray, peir_gross, phantom, r2gen, table
from raymed.data.sources.source import Source
from raymed.errors import UsageError
from raymed.sections import PrepareConfig

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        iu_xray.SOURCE,
        peir_gross.SOURCE,
        r2gen.SOURCE,
        table.SOURCE,
        phantom.SOURCE,
    )
}


def sources_accepting(setting: str) -> list[str]:
    """Return the names of the sources that a setting applies to."""
    return [name for name, source in SOURCES.items() if source.accepts_setting(setting)]


def load_settings(source: str, overrides: Sequence[str]) -> PrepareConfig:
    """Parse the settings of `raymed prepare` for a source from ``key=value`` arguments.

    Raises:
        UsageError: A key does not exist or belongs to another source, or a value is not valid.
    """
    check_settings(source, {text.partition("=")[0].partition(".")[0] for text in overrides})
    return load_prepare(overrides, SOURCES[source].settings)


def check_settings(source: str, names: Collection[str]) -> None:
    """Raise UsageError if a setting belongs only to other sources."""
    for name in sorted(names):
        accepting = sources_accepting(name)
        if accepting and source not in accepting:
            raise UsageError(
                f"{name}: is a setting of {' and '.join(accepting)}; {source} would ignore it. "
                "Leave it out"
            )
