"""What is reported of a configuration that is not valid."""

from pathlib import Path

import pytest

from raymed.config import load
from raymed.errors import UsageError


def faults(path: Path | None, *overrides: str) -> list[str]:
    """The errors that loading reports, without the file name."""
    with pytest.raises(UsageError) as raised:
        load(path, overrides)
    origin = str(path) if path else "defaults"
    text = str(raised.value)
    assert text.startswith(origin)
    first, *rest = text.removeprefix(f"{origin}: ").split("\n")
    if not rest:
        return [first]
    assert first == f"{len(rest)} faults"
    return [line.strip() for line in rest]
