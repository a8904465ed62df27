"""A JSON Lines file of predictions, appended to as they are made."""

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from raymed.errors import UsageError
from raymed.storage import AnyPath, atomic_path, local_copy, reason, user_output


@dataclass(frozen=True)
class Lines:
    """An open file.

    Attributes:
        figures: The figures that its earlier lines name.
    """

    figures: set[str]
    _file: TextIO

    def add(self, line: dict[str, Any]) -> None:
        """Append a line and flush it, so that it outlives the process.

        Raises:
            UsageError: The file cannot be written.
        """
        try:
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise UsageError(f"{self._file.name}: cannot be written ({reason(error)})") from error


@contextmanager
def added_lines(file: AnyPath, images: Iterable[Path]) -> Iterator[Lines]:
    """Append to a file, without its earlier lines of the same images and its incomplete ones.

    At a URI all lines appear when the context ends.

    Raises:
        UsageError: The file cannot be written.
    """
    with ExitStack() as stack:
        try:
            figures = set()
            target = file if isinstance(file, Path) else stack.enter_context(user_output(file))
            if file.exists():
                replaced = set(map(str, images))
                with local_copy(file) as before, atomic_path(target) as kept:
                    figures = _copy(before, kept, replaced)
            opened = stack.enter_context(target.open("a", encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{file}: cannot be written ({reason(error)})") from error
        yield Lines(figures, opened)


def _copy(before: Path, kept: Path, dropped: set[str]) -> set[str]:
    """Copy the lines of all images but ``dropped``; returns the figures that they name."""
    figures = set()
    with before.open(encoding="utf-8") as lines, kept.open("w", encoding="utf-8") as copy:
        for line in lines:
            try:
                content = json.loads(line)
                known = content["image"] in dropped
            except (ValueError, KeyError, TypeError):
                # The process was killed while it wrote this line.
                continue
            if not known:
                copy.write(line)
                figures.add(content["figure"])
    return figures
