"""What a source is: where images and reports come from, and which settings it accepts."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raymed.data.examples import Example, Rejected
from raymed.data.r2gen_text import R2GenRules
from raymed.sections import PrepareConfig

OPTIONAL = ("views", "images", "split_file", "sections", "text")
"""Settings of `PrepareConfig` that only the sources accept which list them in `Source.accepts`."""


@dataclass(frozen=True)
class Source:
    """A source as `raymed prepare` offers it.

    Attributes:
        name: What the user types.
        summary: One line for ``raymed prepare --help``.
        read: Yields the examples, given the path, the settings and a function that prints a line.
            Raises UsageError if the source cannot be read.
        path: What the path names; empty if there is nothing to read because the source generates
            its images.
        settings: `PrepareConfig`, or a subclass with the source's own settings.
        accepts: The settings of `OPTIONAL` that it accepts.
        count: The number of examples, where the settings determine it; for the progress bar.
        r2gen_rules: Of a source that accepts ``text``: which of R2Gen's rules are for the reports
            of a path. Raises UsageError if none are.
        propose: Returns lines that propose settings for a file, for when no ``out`` is given.
    """

    name: str
    summary: str
    read: Callable[[Path, Any, Callable[[str], None]], Iterable[Example | Rejected]]
    path: Literal["FOLDER", "FILE", ""] = ""
    settings: type[PrepareConfig] = PrepareConfig
    accepts: tuple[str, ...] = ()
    count: Callable[[Any], int | None] = lambda _: None
    r2gen_rules: Callable[[Path], R2GenRules] | None = None
    propose: Callable[[Path, Any], list[str]] | None = None

    def accepts_setting(self, name: str) -> bool:
        """Whether a setting applies to this source."""
        return name in self.settings.model_fields and (name not in OPTIONAL or name in self.accepts)
